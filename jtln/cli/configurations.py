"""A study's rows: each composed as a run of its own would be, and checked before anything is run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jtln.cli.build import check, spec_of
from jtln.cli.defaults import with_defaults
from jtln.cli.overrides import is_of_a_choice, key_of, listed
from jtln.cli.user_errors import check_choices, check_types, explain
from jtln.errors import UserError, unknown
from jtln.study.job import Job, settings_hash, spelled, trunk_hash
from jtln.study.study import Labels, Row


class Composer:
    """Makes the rows of a study.

    Args:
        config: the study's own configuration.
        given: the overrides of the command line that all rows get, but for what a row's choices have no key for.
        search_path: Hydra's overrides by which the user's files are found.
    """

    def __init__(self, config: DictConfig, given: Sequence[str], search_path: Sequence[str]) -> None:
        self.study, self.given, self.search_path = config.study, list(given), list(search_path)
        self.dataset = str(HydraConfig.get().runtime.choices["dataset"])
        taken = {key_of(each) for each in given}
        shared = [str(each) for each in listed(config.study.overrides or [])]
        # What the command line says counts more than study.overrides.
        self.shared = [
            e
            for e in shared
            if key_of(e) not in taken and not (is_of_a_choice(e) and key_of(e).partition(".")[0] in taken)
        ]
        spaces: Any = OmegaConf.to_container(config.study.tune.space or OmegaConf.create(), resolve=True)
        methods = GlobalHydra.instance().config_loader().get_group_options("method", ObjectType.CONFIG)
        for name in spaces:
            if name not in ("all", *methods):
                raise unknown("method in study.tune.space", name, ["all", *methods])
        self.spaces: dict[str, Any] = spaces
        self.takes: dict[str, frozenset[str]] = {}
        self.identities: dict[str, str] = {}

    def row(self, name: str) -> Row:
        """Compose the row of this name in the study's file."""
        own = [str(each) for each in listed(self.study.rows[name])]
        if clash := sorted({key_of(each) for each in self.given} & {key_of(each) for each in own}):
            raise UserError(
                f"the rows of study={HydraConfig.get().runtime.choices['study']} set {clash[0]} themselves: leave "
                f"{clash[0]}=... out, and choose rows with study.only=[...]"
            )
        all_rows = (*self.shared, *self.given)
        own = with_defaults([*own, *all_rows])[: -len(all_rows) or None]
        chosen = [each for each in (*own, *all_rows) if not is_of_a_choice(each)]
        base = self._compose(chosen, name)
        fitting = {each: _fitting(each, base) for each in all_rows}
        overrides = (*own, *(each for each in fitting.values() if each is not None))
        composed = base if list(overrides) == chosen else self._compose(overrides, name)
        check_types(composed, list(overrides), base)
        self.takes[name] = frozenset(key_of(each) for each, became in fitting.items() if became is not None)
        space = self._space(str(composed.method.name), {key_of(each) for each in (*own, *self.given)})
        current = {key: OmegaConf.select(composed, key) for key in space}
        for key, value in current.items():
            if not _has(composed, key):
                raise UserError(f"unknown key '{key}' in study.tune.space: {name} has none of that name")
            if OmegaConf.is_config(value):
                raise UserError(f"expected a key with a single value in study.tune.space for {name}, but got {key}")

        def job(values: Mapping[str, Any], labels: Labels, seed: int, trial: int | None) -> Job:
            further = [*(spelled(key, value) for key, value in values.items()), *labels.overrides, f"seed={seed}"]
            config = self._config(composed, further)
            facts: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
            trunk = trunk_hash(facts) if facts["pretrain"]["source"] and not facts["debug"]["smoke"] else None
            identity = self._identity(config, facts)
            return Job(name, labels.words, seed, (*overrides, *further), settings_hash(facts, identity), trunk, trial)

        return Row(name, job, space, current, composed)

    def _identity(self, config: DictConfig, facts: Mapping[str, Any]) -> str:
        """Return the data's part of a run's identity, read once for all runs of the same files."""
        if facts["debug"]["smoke"]:
            return ""
        drawn = ("seed", "shots", "rate")  # which change neither the classes nor the files
        key = json.dumps({k: v for k, v in facts["dataset"].items() if k not in drawn}, sort_keys=True, default=str)
        if key not in self.identities:
            self.identities[key] = spec_of(config).identity
        return self.identities[key]

    def check(self, rows: Sequence[Row], labels: Sequence[Labels], seed: int, tuned: bool) -> None:
        """Raise a UserError for what could only fail: a value of a row, a number of labels, a key that no row has.

        Args:
            rows: as :meth:`row` composed them.
            labels: the study's numbers of labels.
            seed: any of the study's.
            tuned: whether hyper-parameters are searched, on other seeds.
        """
        for key in [key_of(each) for each in (*self.shared, *self.given) if is_of_a_choice(each)]:
            if not any(key in takes for takes in self.takes.values()):
                group = key.partition(".")[0]
                raise UserError(f"none of the rows {', '.join(self.takes)} has a {group} with the key {key}")
        for each in labels:
            with _told_of(each.words):
                spec = instantiate(self._config(rows[0].config, [*each.overrides, f"seed={seed}"]).dataset)
        configs = [self._config(row.config, [*labels[0].overrides, f"seed={seed}"]) for row in rows]
        for row, config in zip(rows, configs, strict=True):
            with _told_of(row.name):  # most rows share the data set; one with classes or links of its own is checked so
                check(config, spec if config.dataset == configs[0].dataset else instantiate(config.dataset))
        drawn = {OmegaConf.select(self._config(rows[0].config, [f"seed={k}"]), "dataset.split_seed") for k in (0, 1)}
        if tuned and (spec.seeds_differ_in_test or len(drawn) > 1):
            raise UserError(
                "expected a pair whose test images are the same for all seeds where study.tune.trials is above 0, but "
                f"got dataset={self.dataset}, of which one seed tests what another validates on: tuning would have "
                "seen the study's test images"
            )

    def _compose(self, overrides: Sequence[str], row: str) -> DictConfig:
        with _told_of(row, overrides):
            check_choices(overrides)
            return compose("train", overrides=[*overrides, *self.search_path])

    def _config(self, composed: DictConfig, further: list[str]) -> DictConfig:
        """Return a run's configuration: its row's, with further overrides."""
        config = composed.copy()
        for override in OverridesParser.create().parse_overrides(further):
            try:
                OmegaConf.update(config, override.key_or_group, override.value())
            except OmegaConfBaseException as error:
                raise UserError(
                    f"expected a pair with the key {override.key_or_group}, but dataset={self.dataset} has none"
                ) from error
        return config

    def _space(self, method: str, fixed: set[str]) -> dict[str, Any]:
        """Return the search space of all methods and of this one, without the keys that the row or the user sets.

        A key counts as set, too, where a group above it is: method.penalty=null sets method.penalty.weight.
        """
        joined = {**(self.spaces.get("all") or {}), **(self.spaces.get(method) or {})}

        def is_set(key: str) -> bool:
            return key in fixed or any(key.startswith(f"{each}.") for each in fixed if "." in each)  # no group's choice

        return {key: values for key, values in joined.items() if values is not None and not is_set(key)}


@contextlib.contextmanager
def _told_of(where: str, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Put the row or the number of labels at fault before the message of a user's mistake."""
    try:
        yield
    except Exception as error:
        mistake = explain(error, overrides)
        if mistake is None:
            raise
        raise UserError(f"{where}: {mistake.replace('dataset.shots', 'study.shots')}") from error


def _fitting(override: str, row: DictConfig) -> str | None:
    """Return an override of all rows as this row takes it.

    None where the row's choice has no such key (the uniform cost has no metric). The key of the inner cost (cost.of)
    where only that one has it (the permuted cost).
    """
    key, value = key_of(override), override.partition("=")[2]
    if not is_of_a_choice(override):
        return override
    if _has(row, key):
        return override.lstrip("+")  # which Hydra takes for new keys alone
    group, _, rest = key.partition(".")
    inner = f"{group}.of.{rest}"
    return f"{inner}={value}" if _has(row, inner) else None


def _has(config: DictConfig, key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and leaf in node
