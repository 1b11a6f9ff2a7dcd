"""Composes the configuration with Hydra, runs a job with it, and puts a user's mistake into one message."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from jtln.cli.defaults import with_defaults
from jtln.cli.objective import is_optimized
from jtln.cli.overrides import (
    at_home,
    check_overrides,
    config_dir,
    config_dir_given,
    is_study,
    options_first,
    overrides_given,
)
from jtln.cli.resume import resumed
from jtln.cli.run_folder import AUTO, check_new_sweep, new_sweep_folder
from jtln.cli.sweep import SWEEP_FOLDER, SweepTable
from jtln.cli.user_errors import check_choices, check_types, explain
from jtln.cli.user_warnings import in_words
from jtln.errors import UserError


@in_words()
def run_hydra(arguments: list[str], job: Callable[[DictConfig], Any]) -> int:
    """Compose the configuration of ``arguments`` and call ``job`` with it, once or, with -m, for each combination.

    Returns:
        The exit code: 0, 1 for a failed run, 2 for a user's mistake, which is printed in one message, 130 for Ctrl-C.
    """
    arguments = [*map(at_home, arguments)]
    # Exceptions are to come out of Hydra as they are, to be explained here; Hydra would print them and exit.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # PyTorch's threads are to sleep while they wait, not to spin: where runs share the cores, spinning costs a
    # multiple of the time, and where one runs alone it gains nothing that can be measured.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    SweepTable.failed.clear()
    sweep: str | None = None
    program, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        check_overrides(arguments)
        check_choices(arguments)
        sweep = _sweep_folder(arguments)
        further = [] if sweep is None else [f'hydra.sweep.dir="{sweep}"']
        if {"--cfg", "-c"} & set(arguments) and "--resolve" in arguments:
            further.append("hydra.job.num=0")  # which has no value where no job runs, so that nothing could follow it
        sys.argv[1:] = options_first([*with_defaults(resumed(arguments)), *further])
        decorate = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")
        decorate(lambda config: _guarded(job, config))()
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
    """Discard all further output, because its reader (``head``, say) has closed the pipe; return the exit code."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _sweep_folder(arguments: list[str]) -> str | None:
    """Return the folder of a multirun for which the user names none, or None for other commands.

    A process that another one started (DDP) gets the folder of that one.

    Raises:
        UserError: the user names one, and it holds runs that this multirun would replace.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return os.environ.get(SWEEP_FOLDER)
    is_multirun = bool({"-m", "--multirun"} & set(arguments)) and not {"--help", "--cfg", "-c"} & set(arguments)
    named = [argument for argument in arguments if argument.lstrip("+~").startswith("hydra.sweep.dir=")]
    if is_multirun and named and f"resume={AUTO}" not in arguments and not is_study(arguments):
        check_new_sweep(named[-1].partition("=")[2])
    return str(new_sweep_folder()) if is_multirun and not named else None


def _guarded(job: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Make one run and return what ``job`` returns.

    In a multirun a run that fails leaves its error in its folder, and the others go on. A sweeper that optimises gets
    the exception, and knows how many of them it takes.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Path(HydraConfig.get().runtime.output_dir, "error.txt").unlink(missing_ok=True)  # of an earlier try
    try:
        check_types(config)
        return job(config)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and not (isinstance(end.code, int) and end.code > 128):  # else after a signal
            raise
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
        if is_optimized():
            raise
        print(f"error: {name}: {mistake or repr(error)} (see {folder / 'error.txt'})", file=sys.stderr)
        return None
