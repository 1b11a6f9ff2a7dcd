"""Entry point of training: composes the configuration, runs it, and puts a user's mistake into one message."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from jtln.cli.run_folder import at_home, new_sweep_folder, own_folder
from jtln.cli.study import config_dir_given, is_study, overrides_given
from jtln.cli.study import main as study
from jtln.cli.sweep import SWEEP_FOLDER, SweepTable
from jtln.cli.user_errors import check_choices, check_types, explain
from jtln.cli.user_warnings import in_words
from jtln.errors import UserError
from jtln.study.job import is_setting


def config_dir() -> Path:
    """Where the configuration groups lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@in_words()
def main(arguments: list[str] | None = None, job: Callable[[DictConfig], Any] | None = None) -> int:
    """Run ``python train.py ARGUMENTS``; returns the exit code: 0, 1 for a failed run, 2 for a mistake in the call.

    Args:
        arguments: the command line; by default this process's.
        job: what is done with the composed configuration; by default a training.
    """
    arguments = [*map(at_home, sys.argv[1:] if arguments is None else arguments)]
    if job is None and is_study(arguments):
        return study(arguments)
    if job is None and (lone := [argument for argument in arguments if re.match(r"[+~]*study\.", argument)]):
        print(
            f"error: {lone[0]} is for a study, but none is named: add -m study=few_shot, for instance", file=sys.stderr
        )
        return 2
    # Exceptions are to come out of Hydra as they are, to be explained here; Hydra would print them and exit.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # PyTorch's threads are to sleep while they wait, not to spin: where runs share the cores, spinning costs a
    # multiple of the time, and where one runs alone it gains nothing that can be measured.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    SweepTable.failed.clear()
    sweep: str | None = None
    program, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        check_choices(arguments)
        sweep = _sweep_folder(arguments)
        sys.argv[1:] = _options_first(
            [*_resumed(arguments), *([] if sweep is None else [f'hydra.sweep.dir="{sweep}"'])]
        )
        decorate = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")
        decorate(lambda config: _guarded(job or _train, config))()
    except BrokenPipeError:
        return output_is_closed()
    except (HydraException, OmegaConfBaseException, UserError, OSError) as error:
        mistake = explain(error, sys.argv[1:])
        if mistake is None:
            traceback.print_exception(error)
            return 1
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:  # Hydra's, after --help and the like
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = program
        if sweep is not None:
            with contextlib.suppress(OSError):  # it is not empty, as it should be
                Path(sweep).rmdir()
    return 1 if SweepTable.failed else 0


def output_is_closed() -> int:
    """What reads this process's output (head, say) has had enough: nothing more is written, and that is no fault."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


# What may change when a run is resumed, which has no part in what it learns but for how long.
_NO_SETTING = ("epochs", "trainer", "logger", "num_workers", "cache", "negative_transfer", "hydra")


def _options_first(arguments: list[str]) -> list[str]:
    """The same, with the options in front that Hydra does not take between values."""
    options, others, left = [], [], iter(arguments)
    for argument in left:
        if argument in ("--config-dir", "-cd"):
            options += [argument, *islice(left, 1)]
        elif argument in ("-m", "--multirun") or argument.startswith("--config-dir="):
            options.append(argument)
        else:
            others.append(argument)
    return [*options, *others]


def _resumed(arguments: list[str]) -> list[str]:
    """The arguments of the run that ``resume=FOLDER`` names, its folder, and what else was given now.

    Raises:
        UserError: there is no such run, it is finished, or it is under way and what was given is one of its settings.
    """
    folders = [argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return arguments
    folder = Path(folders[-1].strip("\"'")).expanduser().resolve()
    overrides = folder / "overrides.yaml"
    if not overrides.is_file():
        raise UserError(f"expected resume= to be the folder of a run, but there is no {overrides}")
    named = {"resume": f'resume="{folder}"', "hydra.run.dir": f'hydra.run.dir="{folder}"'}
    now = [argument for argument in arguments if argument.partition("=")[0] not in named]
    keys = {argument.partition("=")[0] for argument in now if "=" in argument and not argument.startswith("-")}
    if (folder / "result.json").is_file() and not keys:
        raise UserError(f"the run in {folder} is finished: to train it for longer, give epochs= as well")
    try:
        written: Any = OmegaConf.to_container(OmegaConf.load(overrides), resolve=False)
    except (OmegaConfBaseException, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"expected the run's arguments in {overrides}, but it cannot be read: {reason}") from error
    earlier = [str(override) for override in written]
    same = {argument.partition("=")[0] for argument in now if argument in earlier}  # given again, by DDP for one
    settings = sorted(key for key in keys - same if not key.lstrip("+~").startswith(_NO_SETTING))
    if settings and (folder / "checkpoints" / "last.ckpt").is_file():
        raise UserError(
            f"expected no other settings for a run that is under way, but got {', '.join(settings)} with "
            f"resume={folder}: leave them out (epochs, trainer, logger and num_workers may change), or start a new run"
        )
    return [*(each for each in earlier if each.partition("=")[0] not in keys), *now, *named.values()]


def _check_unchanged(config: str, folder: Path) -> None:
    """Raise a UserError where the run under way was begun with other settings: those of another version's defaults.

    Args:
        config: now, YAML.
        folder: of the run, where what it was begun with lies as well.
    """
    begun = folder / "config.yaml"
    if not begun.is_file() or not (folder / "checkpoints" / "last.ckpt").is_file():
        return
    then, now = (_flat(OmegaConf.to_container(each)) for each in (OmegaConf.load(begun), OmegaConf.create(config)))
    nothing = "nothing"
    changed = [
        f"{key} (then {then.get(key, nothing)}, now {now.get(key, nothing)})"
        for key in dict.fromkeys([*then, *now])
        if is_setting(key) and not key.startswith(_NO_SETTING) and then.get(key, nothing) != now.get(key, nothing)
    ]
    if changed:
        raise UserError(
            f"expected the settings that the run in {folder} was begun with, but got others of {', '.join(changed[:8])}"
            f"{', and more' if len(changed) > 8 else ''}: go on with the version that began it, or start a new run"
        )


def _flat(values: Any, above: str = "") -> dict[str, Any]:
    """Every value under its key with dots."""
    if not isinstance(values, dict) or not values:
        return {above: values}
    return {k: v for key, value in values.items() for k, v in _flat(value, f"{above}.{key}".lstrip(".")).items()}


def _sweep_folder(arguments: list[str]) -> str | None:
    """The folder of a multirun for which the user names none; in a process that another one started (DDP), of that
    one's."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return os.environ.get(SWEEP_FOLDER)
    is_multirun = bool({"-m", "--multirun"} & set(arguments)) and not {"--help", "--cfg", "-c"} & set(arguments)
    is_named = any(argument.lstrip("+~").startswith("hydra.sweep.dir=") for argument in arguments)
    return str(new_sweep_folder()) if is_multirun and not is_named else None


def _guarded(job: Callable[[DictConfig], Any], config: DictConfig) -> None:
    """One run. In a multirun a run that fails leaves its error in its folder, and the others go on."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Path(HydraConfig.get().runtime.output_dir, "error.txt").unlink(missing_ok=True)  # of an earlier try
    try:
        check_types(config)
        job(config)
    except KeyboardInterrupt:
        hydra = HydraConfig.get()
        again = shlex.join([*config_dir_given(hydra), f"resume={hydra.runtime.output_dir}"])
        print(f"interrupted; to continue: python train.py {again}", file=sys.stderr)
        raise
    except Exception as error:
        overrides = overrides_given(HydraConfig.get())
        mistake = explain(error, overrides)
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            if mistake is None:
                raise
            print(f"error: {mistake}", file=sys.stderr)
            raise SystemExit(2) from None
        folder, name = Path(HydraConfig.get().runtime.output_dir), " ".join(overrides)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            text = mistake or "".join(traceback.format_exception(error))
            (folder / "error.txt").write_text(text, encoding="utf-8")
        print(f"error: {name}: {mistake or repr(error)} (see {folder / 'error.txt'})", file=sys.stderr)
        SweepTable.failed.append(name)


def _train(config: DictConfig) -> Any:
    with own_folder():
        return _train_in_it(config)


def _train_in_it(config: DictConfig) -> Any:
    # Here, so that --help and a mistake in the call need not wait for PyTorch.
    from jtln.cli.build import build
    from jtln.training.run import run

    experiment, failed = build(config), True
    if experiment.resume:
        _check_unchanged(experiment.config, experiment.folder)
    try:
        result = run(experiment)
        failed = False
    finally:
        if experiment.loggers:
            import wandb

            wandb.finish(exit_code=int(failed))  # otherwise the next job of a multirun would be logged into this one
    return result
