"""One run of a study, and the hash of its settings by which it is known again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jtln.storage import file_digest

# What changes where and how a run is made and kept, but not what comes of it.
_NO_SETTING = (
    "study",
    "logger",
    "cache",
    "resume",
    "num_workers",
    "compare_target_only",
    "trust",
    "trainer.progress_bar",
    "pretrain.only",
    "report",
    "optimized_metric",
)
_NO_DATA = ("download", "decoded", "cache")  # the same of a dataset, at any depth
_LABELS = ("dataset.shots", "dataset.rate")
_FILES = ("file", "links", "weights")  # keys whose value may name a file
_FORMAT = 3  # raised when the same settings come to mean another run


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes:
        row: the row of the study's table that it belongs to.
        labels: how many of them, in words: "1 shot", "5 shots", "15 %".
        seed: of the run.
        overrides: the arguments of ``python train.py``.
        settings: the hash of the configuration that they compose to: :func:`settings_hash`.
        trunk: the hash of what pre-training depends on; jobs with the same one share a trunk. None: no pre-training.
        trial: the number of the tuning trial that it belongs to; None where it is a run of the study itself.
    """

    row: str
    labels: str
    seed: int
    overrides: tuple[str, ...]
    settings: str
    trunk: str | None = None
    trial: int | None = None

    @property
    def folder_name(self) -> str:
        """Readable, and unique by the hash that it ends in."""
        words = [self.row, self.labels, f"seed {self.seed}"]
        return re.sub(r"[^\w.%+-]+", "-", "_".join(words)).replace("%", "percent") + f"_{self.settings}"


def settings_hash(config: Mapping[str, Any], data: str = "") -> str:
    """Return a hash that is equal for two composed configurations (nested mappings of plain values) of equal results.

    Files that they name (cost.file, dataset.links, trunk.weights) count by their content; the code does not count.

    Args:
        config: the composed configuration.
        data: the identity of the images, see :class:`jtln.data.pairs.PairSpec`.
    """
    return _hash({**config, "data": data} if data else config, _NO_SETTING)


def is_setting(key: str) -> bool:
    """Return True if the value of ``key`` may change results, so that it counts in :func:`settings_hash`."""
    return not (_is_elsewhere(key) or any(key == each or key.startswith(f"{each}.") for each in _NO_SETTING))


def row_hash(config: Mapping[str, Any]) -> str:
    """Return a hash that is equal for runs of one row: they differ in the run's seed and the number of labels alone.

    Args:
        config: composed with "*" for the run's seed, which so stands wherever that is used; another seed (cost.seed=1)
            is a setting like any other.
    """
    return _hash(config, (*_NO_SETTING, *_LABELS), run_seed="*")


def trunk_hash(config: Mapping[str, Any]) -> str:
    """Return a hash that differs for runs that start from different pre-trained trunks.

    It may differ for runs that share a trunk, too, which costs time only.
    """
    parts = {key: config.get(key) for key in ("trunk", "pretrain", "dataset", "trainer", "augment", "debug")}
    return _hash(parts, (*_NO_SETTING, *_LABELS, "trunk.freeze"), run_seed=config.get("seed"))


def spelled(key: str, value: Any) -> str:
    """Return the override of ``key`` as the command line wants it: "method.gradient=source", "dataset.shots=null"."""
    if isinstance(value, str):
        return (
            f"{key}={value}" if re.fullmatch(r"[\w./+-]+", value) else f"{key}={json.dumps(value, ensure_ascii=False)}"
        )
    return f"{key}={json.dumps(value)}"


def _is_elsewhere(key: str) -> bool:
    """Return True if ``key`` is about the place of a dataset's images."""
    return key.startswith("dataset.") and key.rpartition(".")[2] in _NO_DATA


def _hash(config: Mapping[str, Any], without: tuple[str, ...], run_seed: Any = None) -> str:
    text = json.dumps([_FORMAT, _plain(config, without, run_seed)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any, without: tuple[str, ...], run_seed: Any, path: str = "") -> Any:
    """Return ``value`` without some keys, and without the seeds equal to ``run_seed``, if that is given.

    1.0 becomes 1, because the command line does not tell them apart.
    """
    if isinstance(value, Mapping):
        kept = {}
        for key, child in value.items():
            where = f"{path}.{key}" if path else str(key)
            is_runs = key == "seed" and run_seed is not None and child == run_seed and path != "pretrain"
            if not (where in without or is_runs or _is_elsewhere(where)):
                kept[str(key)] = _plain(child, without, run_seed, where)
        return kept
    if isinstance(value, list | tuple):
        return [_plain(child, without, run_seed, path) for child in value]
    if isinstance(value, str) and path.rpartition(".")[2] in _FILES and (file := Path(value).expanduser()).is_file():
        return file_digest(file)  # what is in it, not what it is called
    return int(value) if isinstance(value, float) and value.is_integer() else value
