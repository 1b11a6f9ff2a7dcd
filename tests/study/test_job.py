"""The hashes by which a run, its row and its trunk are known again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jtln.study.job import row_hash, settings_hash, spelled, trunk_hash

CONFIG: dict[str, Any] = {
    "seed": 0,
    "cache": None,
    "num_workers": 0,
    "trunk": {"width": 1.0},
    "pretrain": {"source": True, "seed": 0},
    "dataset": {"shots": 1, "seed": 0, "root": "data", "target": {"download": True}},
    "trainer": {"devices": 1, "progress_bar": True},
    "method": {"lambda_ot": 1.0, "layers": [1.0, 2]},
    "study": {"rows": {}},
}


def changed(**values: Any) -> dict[str, Any]:
    """CONFIG with dotted keys, written with __, set."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in values.items():
        *parents, leaf = key.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return config


@pytest.mark.parametrize(
    "change",
    [
        {"cache": "elsewhere"},
        {"trainer__progress_bar": False},
        {"dataset__target__download": False},
        {"method__lambda_ot": 1},
        {"study": {}},
        {"num_workers": 4},
    ],
)
def test_what_changes_no_result_changes_no_hash(change: dict[str, Any]) -> None:
    assert settings_hash(changed(**change)) == settings_hash(CONFIG)


def test_hashes_of_run_row_and_trunk() -> None:
    """A row's configuration has "*" for the run's seed, wherever that is used."""

    def same(**values: Any) -> list[bool]:
        row = {"seed": "*", "dataset__seed": "*"}
        return [
            settings_hash(changed(**values)) == settings_hash(CONFIG),
            row_hash(changed(**{**values, **row})) == row_hash(changed(**row)),
            trunk_hash(changed(**values)) == trunk_hash(CONFIG),
        ]

    assert same(seed=1, dataset__seed=1) == [False, True, True]
    assert same(dataset__shots=5) == [False, True, True]
    assert same(method__lambda_ot=2.0) == [False, False, True]
    assert same(trunk__width=0.5) == same(pretrain__seed=1) == same(dataset__root="x") == [False] * 3
    assert same(cost={"seed": 1}) == [False, False, True]
    assert row_hash(changed(seed="*", cost={"seed": 1})) != row_hash(changed(seed="*", cost={"seed": 2}))
    assert row_hash(changed(seed="*", cost={"seed": "*"})) == row_hash(changed(seed="*", cost={}))
    assert settings_hash(dict(reversed(CONFIG.items()))) == settings_hash(CONFIG)


def test_a_file_counts_by_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("a", encoding="utf-8")
    other.write_text("a", encoding="utf-8")

    def hashed(path: Path) -> str:
        return settings_hash(changed(cost={"file": str(path)}))

    before = hashed(one)
    assert hashed(other) == before
    one.write_text("b", encoding="utf-8")
    assert hashed(one) != before
    assert hashed(tmp_path / "missing.csv") != hashed(tmp_path / "gone.csv")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hashed(Path("~/one.csv")) == hashed(one)


def test_values_as_the_command_line_wants_them() -> None:
    assert spelled("a.b", None) == "a.b=null"
    assert spelled("a", True) == "a=true"
    assert spelled("a", 0.5) == "a=0.5"
    assert spelled("a", "source") == "a=source"
    assert spelled("a", "two words") == 'a="two words"'
    assert spelled("a", "Études") == "a=Études"
    assert spelled("a", "Études I") == 'a="Études I"'
    assert spelled("a", [1, 2]) == "a=[1, 2]"
