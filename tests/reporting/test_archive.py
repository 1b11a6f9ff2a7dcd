"""The archive of a report, against the runs that it was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtln.errors import UserError
from jtln.reporting.archive import FILES, read_archive, read_provenance, write_archive
from jtln.reporting.evidence import gather
from jtln.reporting.naming import Run
from jtln.reporting.predictions import Predictions, write_predictions

IMAGES, SEEDS = 45, 3  # no multiple of 8
PRIOR = {"alpha": 0.7361518144607544, "epsilon": 0.0543928277658508, "exponent": 2.136922059447512, "nll": 3.02524}
CLASSES = ("ant", "bee", "cat")


def finished(row: str, seed: int, folder: Path, **changes: Any) -> Run:
    """A run with its folder: of ``wordnet`` four images in five are right, of the others fewer."""
    generator = np.random.default_rng([seed, len(row)])
    label = np.sort(np.arange(IMAGES, dtype=np.int32) % len(CLASSES))
    wrong = generator.random(IMAGES) < (0.2 if row == "wordnet" else 0.5)
    predicted = np.where(wrong, (label + 1) % len(CLASSES), label).astype(np.int32)
    run_folder = folder / f"{row}_{seed}"
    run_folder.mkdir()
    blank = np.full(IMAGES, 0.5, np.float32)
    write_predictions(Predictions(label, predicted, blank, blank), run_folder)
    lines = ["part,class,image", "train,cat,0.png", *(f"test,{CLASSES[k]},{i}.png" for i, k in enumerate(label))]
    (run_folder / "split.csv").write_text("\n".join(lines), encoding="utf-8")
    figures = {"accuracy": float(np.mean(~wrong)), "mean_class_accuracy": 0.1 + seed, "macro_f1": 1 / 3, "ece": 0.25}
    overrides = [f"head.prior={row}", "cache=/srv/a b/c", "dataset.shots=2", f"seed={seed}"]
    result = {
        "method": "linear_probe",
        "head": "logistic",
        "dataset": "toys",
        "cost": f"{row} (path)" if row == "wordnet" else None,
        "shots": 2,
        "rate": None,
        "seed": seed,
        "overrides": overrides,
        "settings": {"run": f"{row}{seed}", "row": row},
        "git_commit": "abc",
        "hardware": "cpu, 1 threads",
        "versions": {"torch": "2.14"},
        "transport": {"lambda_ot": 0.0, "lambda_label": 0.0} if row == "wordnet" else None,
        "prior": {**PRIOR, "folds": {}} if row == "wordnet" else None,
        "target": {"val": None, "test": {**figures, "n": IMAGES}},
        "trunk": {"name": "lite", "pretrained": {"cached": seed > 0}},
        "seeds_differ_in_test": False,
        "seconds": 1.0,
        "seconds_in_all": 2.5 + seed,
        **changes,
    }
    (run_folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return Run(row, result, run_folder)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [finished(row, seed, tmp_path) for row in ("none", "wordnet") for seed in range(SEEDS)]


def test_the_evidence_is_that_of_the_run_folders(runs: list[Run], tmp_path: Path) -> None:
    """The tables, intervals, tests and commands are alike, but for PATH in place of each absolute path."""
    write_archive(runs, tmp_path / "archive")
    for metric in ("accuracy", "mean_class_accuracy", "macro_f1"):
        before, after = (
            gather(each, against=["none"], metric=metric) for each in (runs, read_archive(tmp_path / "archive"))
        )
        (given,), (found,) = before.datasets, after.datasets
        assert found.claims == given.claims
        assert found.claims[0].bootstrap is (metric != "macro_f1")
        assert before.notes == after.notes
        for row, other in zip(found.rows, given.rows, strict=True):
            assert (row.name, row.method, row.head, row.cost, row.transports, row.seconds) == (
                *(other.name, other.method, other.head, other.cost, other.transports, other.seconds),
            )
            assert row.cells["2 shots"].test == other.cells["2 shots"].test
            assert row.command == other.command.replace("'cache=/srv/a b/c'", "cache=PATH")
            for seed, values in row.cells["2 shots"].images.items():
                assert np.array_equal(values.value, other.cells["2 shots"].images[seed].value)


def test_the_fit_of_the_prior_and_the_provenance(runs: list[Run], tmp_path: Path) -> None:
    write_archive(runs, tmp_path / "archive", "python train.py -m study=prior 'study.folder=/srv/x y' study.shots=[2]")
    found = read_archive(tmp_path / "archive")
    assert [run.result["prior"] for run in found] == [None] * SEEDS + [PRIOR] * SEEDS
    provenance = read_provenance(tmp_path / "archive")
    assert provenance["classes"] == {"toys": list(CLASSES)}
    assert provenance["command"] == "python train.py -m study=prior study.folder=PATH 'study.shots=[2]'"
    assert provenance["git_commits"] == ["abc"]
    assert provenance["versions"] == {"torch": "2.14"}
    assert "/srv" not in "".join((tmp_path / "archive" / name).read_bytes().decode("latin-1") for name in FILES)


def test_seeds_with_test_images_of_their_own(runs: list[Run], tmp_path: Path) -> None:
    other = runs[-1]
    label = np.array([2, 0, 1, 1], np.int32)
    blank = np.full(4, 0.5, np.float32)
    write_predictions(Predictions(label, np.array([2, 0, 0, 1], np.int32), blank, blank), other.folder)
    (other.folder / "split.csv").write_text("part,class\n" + "".join(f"test,{name}\n" for name in "acbb"))
    without = runs[0].folder / "predictions.npz"
    without.unlink()
    write_archive(runs, tmp_path / "archive")
    assert read_provenance(tmp_path / "archive")["classes"] == {"toys": []}  # each seed has classes of its own
    first, *_, last = read_archive(tmp_path / "archive")
    assert first.images is None
    assert last.correctness().label.tolist() == label.tolist()
    assert last.correctness().right.tolist() == [True, True, False, True]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["missing", "cut off"])
def test_a_damaged_archive_is_named(name: str, kind: str, runs: list[Run], tmp_path: Path) -> None:
    write_archive(runs, tmp_path / "archive")
    path = tmp_path / "archive" / name
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=rf"{name}.*archive"):
        read_archive(tmp_path / "archive")
