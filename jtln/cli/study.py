"""``python train.py -m study=NAME``: from the composed configuration to a study of many runs, which this then runs."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from jtln.cli.hydra_app import run_hydra
from jtln.cli.overrides import at_least, is_of_a_choice, key_of, listed, overrides_given
from jtln.errors import UserError, unknown
from jtln.study.job import is_setting, spelled

if TYPE_CHECKING:
    from jtln.study.launch import Launch
    from jtln.study.study import Labels, Row, Study

FOLDER = "${study.folder}/${hydra:runtime.choices.study}/${hydra:runtime.choices.dataset}"
_ELSEWHERE = ("dataset.root", "trainer.accelerator", "trainer.devices", "trainer.num_nodes")  # where a run is made
_OWN = {"seed": "study.seeds", "dataset.shots": "study.shots", "dataset.rate": "study.rates"}


def main(arguments: Sequence[str]) -> int:
    """Run the study, or one for each combination of values given with commas; returns the exit code."""
    flags = ("-m", "--multirun")
    given = [argument for argument in arguments if argument not in flags]
    if len(given) == len(arguments) and not any(argument in ("--cfg", "-c", "--help") for argument in given):
        print(f"error: a study is many runs: python train.py -m {_spaced(given)}", file=sys.stderr)
        return 2
    codes, combinations = [0], _combinations(given)
    for each in combinations:
        planned: list[tuple[Study, Launch]] = []
        command = f"python train.py -m {_spaced(each)}"
        swept = [argument for argument in each if not all(argument in other for other in combinations)]
        # A row chooses its cost and method itself, so what keys these have is known when the row is composed.
        rows = [argument for argument in each if is_of_a_choice(argument) and "--cfg" not in each and "-c" not in each]
        plain = [argument for argument in each if argument not in rows]
        codes.append(run_hydra(_placed(plain, _apart(each, swept)), job=partial(_plan_into, planned, command, rows)))
        if planned:
            codes.append(_run(*planned[0]))
        if codes[-1] == 130:
            break
    return max(codes)


def _plan_into(planned: list[tuple[Study, Launch]], command: str, for_rows: Sequence[str], config: DictConfig) -> None:
    planned.append(plan(config, command, for_rows))


def _spaced(arguments: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, arguments))


def _combinations(arguments: Sequence[str]) -> list[list[str]]:
    """One list of arguments for each combination of values with commas; those of study.KEY are lists, not sweeps."""
    choices: list[list[str]] = []
    for argument in arguments:
        try:
            (override,) = OverridesParser.create().parse_overrides([argument])
        except (HydraException, ValueError):  # an option, or a mistake that Hydra will name
            choices.append([argument])
            continue
        if not override.is_sweep_override() or override.is_hydra_override():
            choices.append([argument])
            continue
        key, values = override.get_key_element(), list(override.sweep_string_iterator())
        is_list = key.startswith("study.")
        choices.append([f"{key}=[{','.join(values)}]"] if is_list else [f"{key}={value}" for value in values])
    return [list(each) for each in product(*choices)]


def _placed(arguments: Sequence[str], apart: Sequence[str]) -> list[str]:
    """Return the arguments with the study's folder in front.

    hydra.sweep.dir names it as in every multirun. By default its name is the study, its dataset and the overrides that
    set this study ``apart``.
    """
    named = [each.partition("=")[2] for each in arguments if each.startswith(("hydra.sweep.dir=", "hydra.run.dir="))]
    rest = [each for each in arguments if not each.startswith(("hydra.sweep.dir=", "hydra.run.dir="))]
    words = re.sub(r"[^\w.-]+", "-", "_".join(apart))
    if len(words) > 80:
        words = f"{words[:72]}_{hashlib.sha256(words.encode()).hexdigest()[:6]}"
    folder = "_".join(filter(None, (named[-1].strip("\"'") if named else FOLDER, words)))
    # In front, as Hydra takes overrides in one piece. The study prints a line for each run itself.
    return [f'hydra.run.dir="{folder}"', "hydra/hydra_logging=none", *rest]


def _apart(arguments: Sequence[str], swept: Sequence[str]) -> list[str]:
    """Return the overrides that tell this study's folder from another's.

    These are the swept ones, and, where the user names no folder, all others that change results: a study must not
    write over the report of another one.
    """
    is_named = any(each.startswith(("hydra.sweep.dir=", "hydra.run.dir=")) for each in arguments)
    further = [] if is_named else [each for each in arguments if each not in swept and _is_another(each)]
    said = () if is_named else ("study=", "dataset=")  # by the folder's own name
    return sorted(each for each in (*swept, *further) if not each.startswith(said))


def _is_another(override: str) -> bool:
    """Return True if the override changes results, and not only their number or the place of files."""
    key = key_of(override)
    if "=" not in override or key.startswith(("-", "hydra")) or key in _ELSEWHERE:
        return False
    return is_setting(key) or key.startswith(("study.tune", "study.overrides"))


def _run(study: Study, launch: Launch) -> int:
    from jtln.study.study import run_study

    try:
        return 0 if run_study(study, launch) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; the runs that are done are kept, and those under way have their last checkpoint. The same "
            f"command goes on from here: {study.command}",
            file=sys.stderr,
        )
        return 130


def plan(config: DictConfig, command: str, for_rows: Sequence[str] = ()) -> tuple[Study, Launch]:
    """Return the study that ``config`` describes, and its launch; a UserError names a value that cannot be.

    Hydra must be active, because it composes every row.

    Args:
        config: the composed configuration.
        command: the command that the user typed.
        for_rows: overrides of keys in the groups that the rows choose, for the rows that have these keys.
    """
    from jtln.cli.configurations import Composer
    from jtln.cli.launcher import study_launch
    from jtln.study.study import Study, Tuning

    hydra, settings = HydraConfig.get(), config.study
    for key in ("rows", "seeds", "folder", "tune"):
        if settings[key] is None:
            raise UserError(f"expected a value for study.{key}, but got null")
    given = [each for each in overrides_given(hydra) if not re.match(r"[+~]*study[=./@]", each)] + list(for_rows)
    search_path = [each for each in hydra.overrides.hydra if "hydra.searchpath" in each]
    names = [str(name) for name in settings.rows]
    everything = [*given, *(settings.overrides or []), *(each for row in settings.rows.values() for each in row)]
    for key, instead in _OWN.items():
        if any(key_of(str(each)) == key for each in everything):
            raise UserError(f"a study sets {key} itself: give {instead}=[...] in place of {key}=...")
    only = names if settings.only is None else listed(settings.only)
    for name in only:
        if name not in names:
            raise unknown("row in study.only", name, names)
    labels = _labels(config, settings.shots, settings.rates)
    seeds = _seeds("study.seeds", settings.seeds)
    for key, values in {"rows": names, "only": only, "shots": labels, "seeds": seeds}.items():
        if not values:
            raise UserError(f"expected at least one in study.{key}, but got {OmegaConf.select(settings, key)}")
    tune = settings.tune
    trials = at_least("study.tune.trials", tune.trials, 0)
    composer = Composer(config, given, search_path)
    rows = tuple(composer.row(name) for name in names if name in only)
    composer.check(rows, labels, seeds[0], tuned=trials > 0)
    folder = Path(hydra.runtime.output_dir)
    study = Study(
        name=str(hydra.runtime.choices["study"]),
        folder=folder,
        runs=Path(settings.folder) / "runs",
        rows=rows,
        labels=labels,
        seeds=seeds,
        against=_against(settings),
        tuning=Tuning(
            trials=trials,
            seeds=_seeds("study.tune.seeds", tune.seeds),
            labels=labels if tune.shots is None else _labels(config, tune.shots, None),
            sampler_seed=at_least("study.tune.seed", tune.seed, 0),
            margin=_margin(tune.margin),
        ),
        command=command,
    )
    return study, study_launch(config, study.runs, _wandb_group(rows, folder))


def _wandb_group(rows: Sequence[Row], folder: Path) -> tuple[str, ...]:
    """Return the override that puts the runs into one W&B group, called after the study's folder.

    Nothing where a row does not log to W&B, or has a group of its own.
    """
    loggers: list[Any] = [row.config.get("logger") or {} for row in rows]
    study = str(HydraConfig.get().runtime.choices["study"])
    name = f"{study}-{folder.name}" if folder.parent.name == study else folder.name  # studies/STUDY/DATASET
    grouped = all("wandb" in logger and not logger.wandb.get("group") for logger in loggers)
    return (spelled("logger.wandb.group", name),) if grouped else ()


def _against(settings: DictConfig) -> tuple[str, ...]:
    """Return the baselines: rows of the study or methods of them, whether or not study.only leaves them in."""
    chosen = [] if settings.against is None else [str(each).strip() for each in listed(settings.against)]
    methods = [each.partition("=")[2] for row in settings.rows.values() for each in row if key_of(each) == "method"]
    known = list(dict.fromkeys([*map(str, settings.rows), *methods]))
    for name in chosen:
        if name not in known:
            raise unknown("row in study.against", name, known)
    return tuple(chosen)


def _margin(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise UserError(f"expected a number >= 0 for study.tune.margin, but got {value!r}")
    return float(value)


def _labels(config: DictConfig, shots: Any, rates: Any) -> tuple[Labels, ...]:
    from jtln.reporting.evidence import labels_of
    from jtln.study.study import Labels

    if shots is None and rates is None:  # as the dataset has it
        facts = {key: config.dataset.get(key) for key in ("shots", "rate")}
        return (Labels(labels_of(facts), ()),)
    levels = []
    for count in [] if shots is None else listed(shots):
        if count is not None:
            at_least("study.shots", count, 1)
        instead = ("dataset.rate=null",) if config.dataset.get("rate") is not None else ()  # of a share (experiment=)
        shots_given = f"dataset.shots={'null' if count is None else count}"
        levels.append(Labels(labels_of({"shots": count}), (*instead, shots_given)))
    for rate in [] if rates is None else listed(rates):
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise UserError(f"expected study.rates to be shares in (0, 1], but got {rate!r}")
        levels.append(Labels(labels_of({"rate": rate}), ("dataset.shots=null", f"dataset.rate={rate}")))
    return tuple(levels)


def _seeds(key: str, value: Any) -> tuple[int, ...]:
    """Return the seeds: 0 ... value - 1 for a number, else those listed."""
    seeds = list(range(value)) if isinstance(value, int) else listed(value)
    if large := [seed for seed in seeds if isinstance(seed, int) and seed >= 2**32]:
        raise UserError(f"expected seeds from 0 to {2**32 - 1} in {key}, but got {large[0]}")
    return tuple(dict.fromkeys(at_least(key, seed, 0) for seed in seeds))
