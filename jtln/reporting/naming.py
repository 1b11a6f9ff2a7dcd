"""Finished runs, and the names of the rows that they belong to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jtln.reporting.predictions import Correctness, read_predictions

PER_RUN = ("seed", "dataset.shots", "dataset.rate", "logger.wandb.group")  # what runs of one row differ in
# Keys of a dataset that say where it lies and how its images are seen, but not which they are.
_SAME_IMAGES = frozenset(
    ["root", "download", "cache", "decoded", "image_size", "stored_size", "fit", "flip", "shift", "crop"]
)
_MOST = 3  # differing settings in a name


class Run(NamedTuple):
    """A finished run: the name of its row, where it has one, what result.json holds, and its folder.

    ``images`` is the correctness of its test predictions where it is in memory; else the folder holds them.
    """

    row: str | None
    result: dict[str, Any]
    folder: Path
    images: Correctness | None = None

    def correctness(self) -> Correctness:
        """Return the correctness of the test predictions.

        Raises:
            UserError: they are neither in memory nor in the folder.
        """
        if self.images is not None:
            return self.images
        predictions = read_predictions(self.folder)
        return Correctness(predictions.label, predictions.right)


def by_data(runs: list[Run]) -> list[Run]:
    """Return the runs with distinct names for datasets that differ in their images or classes.

    A dataset's name is followed by the overrides in which runs differ (dataset.split_seed=1), because rows that were
    tested on other images are no pairs. Runs that a study named keep their names.
    """
    members: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        members[run.result["dataset"]].append(run)
    chosen = {name for name, those in members.items() if _experiments_differ(those)}
    settings = {name: [_of_data(run.result, name in chosen) for run in those] for name, those in members.items()}
    told = []
    for run in runs:
        name = run.result["dataset"]
        if run.row is not None:
            told.append(run)
            continue
        own = _of_data(run.result, name in chosen) - frozenset.intersection(*settings[name])
        full = f"{name} ({' '.join(sorted(own))})" if own else name
        told.append(run._replace(result={**run.result, "dataset": full}))
    return told


def named(runs: list[Run]) -> list[Run]:
    """Return each run with a row's name that no other row has.

    It is "METHOD + HEAD (COST)" without the linear head and a missing cost. Where several rows have these, what was
    given for one and not for the others follows, or else the settings in which they differ (as between two versions of
    the program).
    """
    free: dict[tuple[str, str], list[Run]] = defaultdict(list)  # those without a name, by what they would be called
    for run in runs:
        if run.row is None:
            cost = (run.result.get("cost") or "").partition(" (")[0]
            head = run.result.get("head", "linear")
            name = run.result["method"] + (f" + {head}" if head != "linear" else "") + (f" ({cost})" if cost else "")
            free[run.result["dataset"], name].append(run)
    names: dict[int, str] = {}
    for (_, name), members in free.items():
        rows: dict[str, list[Run]] = defaultdict(list)
        for run in members:
            rows[run.result["settings"].get("row") or " ".join(sorted(given(run.result)))].append(run)
        told = _told(list(rows.values()))
        taken: set[str] = set()
        for words, each in zip(told, rows.values(), strict=True):
            full = f"{name} {words}".strip()
            while full in taken:
                full += f" #{len(taken) + 1}"
            taken.add(full)
            names |= {id(run): full for run in each}
    return [run if run.row is not None else run._replace(row=names[id(run)]) for run in runs]


def given(result: Mapping[str, Any]) -> list[str]:
    """Return the overrides of a run that its row shares."""
    return [each for each in result.get("overrides", ()) if each.partition("=")[0] not in PER_RUN]


def _of_data(result: Mapping[str, Any], with_experiment: bool) -> frozenset[str]:
    """Return the overrides that change the dataset's images or classes, except the number of labels.

    Args:
        result: as in ``result.json``.
        with_experiment: whether experiment=FILE is such a thing.
    """
    keys = [(each, each.partition("=")[0].lstrip("+~")) for each in given(result)]
    starts = ("dataset.", "dataset/", "debug", *(["experiment"] if with_experiment else []))
    return frozenset(
        each for each, key in keys if key.startswith(starts) and key.rpartition(".")[2] not in _SAME_IMAGES
    )


def _experiments_differ(runs: Sequence[Run]) -> bool:
    """Return True if an experiment's file has set the images or classes of some runs.

    The datasets of these runs then differ in ways that the command line does not show.
    """
    kinds = {each for run in runs for each in given(run.result) if each.partition("=")[0].lstrip("+~") == "experiment"}
    if not kinds:
        return False
    datasets: dict[frozenset[str], set[tuple[tuple[str, str], ...]]] = defaultdict(set)
    for run in runs:
        found = _settings(run.folder / "config.yaml")
        # Where the dataset's seed follows the run's, it is another with each.
        own = {k: v for k, v in found.items() if k.startswith("dataset.") and k != "dataset.split_seed"}
        datasets[_of_data(run.result, with_experiment=False)].add(
            tuple(sorted((k, v) for k, v in own.items() if k.rpartition(".")[2] not in _SAME_IMAGES))
        )
    return any(len(each) > 1 for each in datasets.values())


def _told(rows: Sequence[Sequence[Run]]) -> list[str]:
    """Return what tells rows of one method, head and cost apart, in words for each; nothing where there is one row."""
    if len(rows) == 1:
        return [""]
    sets = [set.intersection(*(set(given(run.result)) for run in each)) for each in rows]
    shared = set.intersection(*sets)
    by_override = [" ".join(sorted(each - shared)) for each in sets]
    if len(set(by_override)) == len(rows):
        return by_override
    settings = [_settings(each[0].folder / "config.yaml") for each in rows]
    keys = sorted({key for each in settings for key in each})
    differing = [key for key in keys if len({each.get(key, "") for each in settings}) > 1]
    words = []
    for override, each in zip(by_override, settings, strict=True):
        own = [f"{key}={each[key]}" for key in differing if key in each and f"{key}={each[key]}" not in override]
        more = [f"and {len(own) - _MOST} more"] if len(own) > _MOST else []
        words.append(" ".join([override, *own[:_MOST], *more]).strip())
    return words


def _settings(path: Path) -> dict[str, str]:
    """Key with dots -> value of a run's config.yaml, without what its row does not share; nothing where none is."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    flat: dict[str, str] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                walk(child, f"{key}.{name}" if key else str(name))
        elif key not in PER_RUN and key.rpartition(".")[2] not in ("seed", "cache"):
            flat[key] = str(node)

    walk(config, "")
    return flat
