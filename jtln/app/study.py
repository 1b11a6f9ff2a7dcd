"""``python train.py -m study=NAME``: from the composed configuration to a study of many runs, which this then runs."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from jtln.errors import UserError, unknown

if TYPE_CHECKING:
    from jtln.study.job import Job
    from jtln.study.schedule import Worker
    from jtln.study.study import Labels, Row, Study

FOLDER = "hydra.run.dir=${study.folder}/${hydra:runtime.choices.study}/${hydra:runtime.choices.dataset}"
_CHOSEN = ("cost", "method", "pretrain")  # groups that a row chooses itself, and so which keys they have
_OWN = {"seed": "study.seeds", "dataset.shots": "study.shots", "dataset.rate": "study.rates"}


def is_study(arguments: Sequence[str]) -> bool:
    """Whether ``arguments`` name a study."""
    return any(re.match(r"\+?study=(?!(none|null)$)", argument) for argument in arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the study, or one for each combination of values given with commas; returns the exit code."""
    from jtln.app.main import main as run_main

    flags = ("-m", "--multirun")
    given = [argument for argument in arguments if argument not in flags]
    if len(given) == len(arguments) and not any(argument in ("--cfg", "-c", "--help") for argument in given):
        print(f"error: a study is many runs: python train.py -m {_spaced(given)}", file=sys.stderr)
        return 2
    codes = [0]
    for each in _combinations(given):
        planned: list[tuple[Study, list[Worker]]] = []
        # Planned inside Hydra, run after it: a run in this same process starts Hydra anew.
        codes.append(run_main(_placed(each), job=partial(_plan_into, planned, f"python train.py -m {_spaced(each)}")))
        if planned:
            codes.append(_run(*planned[0]))
        if codes[-1] == 130:
            break
    return max(codes)


def _plan_into(planned: list[tuple[Study, list[Worker]]], command: str, config: DictConfig) -> None:
    planned.append(plan(config, command))


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


def _placed(arguments: Sequence[str]) -> list[str]:
    """With the study's folder, which hydra.sweep.dir names as in every multirun."""
    named = [each.partition("=")[2] for each in arguments if each.startswith(("hydra.sweep.dir=", "hydra.run.dir="))]
    rest = [each for each in arguments if not each.startswith(("hydra.sweep.dir=", "hydra.run.dir="))]
    return [f"hydra.run.dir={named[-1]}" if named else FOLDER, *rest]  # in front: Hydra takes overrides in one piece


def _run(study: Study, workers: list[Worker]) -> int:
    from jtln.study.study import run_study

    try:
        return 0 if run_study(study, workers) else 1
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


def plan(config: DictConfig, command: str) -> tuple[Study, list[Worker]]:
    """The study that ``config`` describes; a UserError says which of its values cannot be.

    To be called inside Hydra, by which every row is composed.
    """
    from jtln.study.study import Study, Tuning

    hydra, settings = HydraConfig.get(), config.study
    given = [each for each in hydra.overrides.task if not re.match(r"[+~]*study[=./@]", each)]
    search_path = [each for each in hydra.overrides.hydra if "hydra.searchpath" in each]
    for key, instead in _OWN.items():
        if any(_key(each) == key for each in given):
            raise UserError(f"a study sets {key} itself: give {instead}=[...] in place of {key}=...")
    names = [str(name) for name in settings.rows]
    only = names if settings.only is None else _list(settings.only)
    for name in only:
        if name not in names:
            raise unknown("row in study.only", name, names)
    rows = tuple(_row(name, config, given, search_path) for name in names if name in only)
    for key in [_key(each) for each in given if _is_of_a_choice(each)]:
        if not any(key in row.takes for row in rows):
            group = key.partition(".")[0]
            raise UserError(f"none of the rows {', '.join(row.name for row in rows)} has a {group} with the key {key}")
    folder = Path(hydra.runtime.output_dir)
    tune = settings.tune
    if _at_least("study.tune.trials", tune.trials, 0) and instantiate(config.dataset).seeds_differ_in_test:
        raise UserError(
            f"expected a pair whose test images are the same for all seeds where study.tune.trials is above 0, but got "
            f"dataset={hydra.runtime.choices['dataset']}, of which one seed tests what another validates on: tuning "
            "would have seen the study's test images"
        )
    study = Study(
        name=str(hydra.runtime.choices["study"]),
        folder=folder,
        runs=Path(settings.folder) / "runs",
        rows=rows,
        labels=_labels(config, settings.shots, settings.rates),
        seeds=_seeds("study.seeds", settings.seeds),
        against=tuple(_list(settings.against)),
        tuning=Tuning(
            trials=tune.trials,
            seeds=_seeds("study.tune.seeds", tune.seeds),
            labels=_labels(config, *((settings.shots, settings.rates) if tune.shots is None else (tune.shots, None))),
            sampler_seed=_at_least("study.tune.seed", tune.seed, 0),
        ),
        command=command,
        extra=(*config_dir_given(hydra), *search_path),
    )
    return study, _workers(config)


def _row(name: str, config: DictConfig, given: Sequence[str], search_path: Sequence[str]) -> Row:
    from jtln.study.study import Row

    own = [str(each) for each in _list(config.study.rows[name])]
    taken = {_key(each) for each in given}
    if clash := sorted(taken & {_key(each) for each in own}):
        raise UserError(
            f"the rows of study={HydraConfig.get().runtime.choices['study']} set {clash[0]} themselves: leave "
            f"{clash[0]}=... out, and choose rows with study.only=[...]"
        )
    shared = [str(each) for each in _list(config.study.overrides)]
    shared = [each for each in shared if _key(each) not in taken and _key(each).partition(".")[0] not in taken]
    chosen = [each for each in (*own, *shared, *given) if not _is_of_a_choice(each)]
    base = compose("train", overrides=[*chosen, *search_path])
    fitting = {each: _fitting(each, base) for each in (*shared, *given)}
    overrides = (*own, *(each for each in fitting.values() if each is not None))
    composed = base if list(overrides) == chosen else compose("train", overrides=[*overrides, *search_path])
    takes = frozenset(_key(each) for each, became in fitting.items() if became is not None)
    space = _space(config.study.tune.space, str(composed.method.name), {_key(each) for each in (*own, *given)})
    current = {key: OmegaConf.select(composed, key) for key in space}
    for key, value in current.items():
        if OmegaConf.is_config(value) or (value is None and not _has(composed, key)):
            raise UserError(f"expected a key with a single value in study.tune.space for {name}, but got {key}")

    def job(values: Mapping[str, Any], labels: Labels, seed: int, trial: int | None) -> Job:
        return _job(name, composed, overrides, values, labels, seed, trial)

    return Row(name, job, space, current, takes)


def _is_of_a_choice(override: str) -> bool:
    """Whether it sets a key inside a group that the rows choose themselves (cost.metric=path)."""
    return override.startswith(tuple(f"{group}." for group in _CHOSEN))


def _fitting(override: str, row: DictConfig) -> str | None:
    """An override of all rows as this row takes it: None where what it chose has no such key (the uniform cost no
    metric), that of the cost within (cost.of) where the row's own cost has none (the permuted one)."""
    key, _, value = override.partition("=")
    if not _is_of_a_choice(override) or _has(row, key):
        return override
    group, _, rest = key.partition(".")
    inner = f"{group}.of.{rest}"
    return f"{inner}={value}" if _has(row, inner) else None


def _job(
    name: str,
    composed: DictConfig,
    overrides: Sequence[str],
    values: Mapping[str, Any],
    labels: Labels,
    seed: int,
    trial: int | None,
) -> Job:
    from jtln.study.job import Job, settings_hash, spelled, trunk_hash

    further = [*(spelled(key, value) for key, value in values.items()), *labels.overrides, f"seed={seed}"]
    config = composed.copy()
    for override in OverridesParser.create().parse_overrides(further):
        OmegaConf.update(config, override.key_or_group, override.value())
    facts: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    trunk = trunk_hash(facts) if facts["pretrain"]["source"] and not facts["debug"]["smoke"] else None
    return Job(name, labels.words, seed, (*overrides, *further), settings_hash(facts), trunk, trial)


def _space(spaces: DictConfig, method: str, fixed: set[str]) -> dict[str, Any]:
    """What every method has, and what this one has beside it; without what the row or the command line sets."""
    plain: dict[str, Any] = OmegaConf.to_container(spaces, resolve=True)  # type: ignore[assignment]
    joined = {**(plain.get("all") or {}), **(plain.get(method) or {})}
    return {key: values for key, values in joined.items() if values is not None and key not in fixed}


def _labels(config: DictConfig, shots: Any, rates: Any) -> tuple[Labels, ...]:
    from jtln.study.evidence import labels_of
    from jtln.study.study import Labels

    if shots is None and rates is None:  # as the dataset has it
        facts = {key: config.dataset.get(key) for key in ("shots", "rate")}
        return (Labels(labels_of(facts), ()),)
    levels = []
    for count in [] if shots is None else _list(shots):
        if count is not None:
            _at_least("study.shots", count, 1)
        levels.append(Labels(labels_of({"shots": count}), (f"dataset.shots={'null' if count is None else count}",)))
    for rate in [] if rates is None else _list(rates):
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise UserError(f"expected study.rates to be shares in (0, 1], but got {rate!r}")
        levels.append(Labels(labels_of({"rate": rate}), ("dataset.shots=null", f"dataset.rate={rate}")))
    return tuple(levels)


def _workers(config: DictConfig) -> list[Worker]:
    from jtln.app.main import main
    from jtln.study.workers import InThisProcess, Process, environments

    wanted = config.study.workers
    if wanted == 0:
        return [InThisProcess(main)]
    shares = environments(wanted, str(config.trainer.accelerator), config.trainer.devices)
    return [Process([sys.executable, "-m", "jtln.app.worker"], share) for share in shares]


def config_dir_given(hydra: Any) -> list[str]:
    """The user's own --config-dir, for further runs; nothing where there is none."""
    sources = [source for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return [part for source in sources for part in ("--config-dir", os.path.abspath(source.path))]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _has(config: DictConfig, key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and leaf in node


def _list(value: Any) -> list[Any]:
    return list(value) if OmegaConf.is_list(value) else [value]


def _seeds(key: str, value: Any) -> tuple[int, ...]:
    """A number of seeds, from 0, or the seeds themselves."""
    seeds = list(range(value)) if isinstance(value, int) else _list(value)
    return tuple(dict.fromkeys(_at_least(key, seed, 0) for seed in seeds))


def _at_least(key: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"expected whole numbers >= {least} for {key}, but got {value!r}")
    return value
