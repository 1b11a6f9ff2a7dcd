"""The gap to a run that had the target alone: trained, compared, logged and printed."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from jtln.costs import UniformCost
from jtln.data.pairs import PairSpec
from jtln.heads import Linear
from jtln.methods import BSS, Method
from jtln.module import Optimization
from jtln.training.experiment import Experiment
from jtln.training.pretraining import Pretraining
from jtln.training.run import _is_target_only, run
from jtln.training.target_only import METRIC, PATIENCE, CompareTargetOnly, is_below, read_curve, standard_error
from jtln.training.trainer import Budget, TrainerSettings
from jtln.transport import TransportSettings
from jtln.trunks.base import Trunk

CPU = TrainerSettings({"accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}, progress_bar=False)
ALONE = Method("target_only")
STEPS = [4, 8, 12, 16]

pytestmark = [pytest.mark.usefixtures("no_drawing"), pytest.mark.slow]


@pytest.fixture
def experiment(tiny: PairSpec, make_trunk: Callable[..., Trunk], tmp_path: Path) -> Experiment:
    return Experiment(
        method=Method("joint", lambda_source=1.0),
        head=Linear(),
        cost=UniformCost(),
        transport=TransportSettings(),
        spec=tiny,
        make_trunk=partial(make_trunk, 0.2),
        budget=Budget(4, 4, 8, 6),
        optimization=Optimization(partial(torch.optim.SGD, lr=0.3), 1.0),
        trainer=CPU,
        folder=tmp_path / "run",
        dataset="tiny",
        cost_name="uniform",
        cache=tmp_path / "cache",
        compare_target_only=True,
        command="python train.py method=joint",
    )


def column(folder: Path, name: str) -> dict[int, float]:
    """{steps done: value} of the rows of metrics.csv that hold a value."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return {int(row["step"]) + 1: float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def test_the_gap_is_the_difference_of_the_two_curves(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The target-only run that comes first is that of method=target_only, whose trunk learns as fast as its head."""
    alone = replace(experiment, method=ALONE, folder=tmp_path / "alone")
    assert run(alone)["target_only"] is None  # it is not compared with itself
    theirs = column(alone.folder, "val/target/accuracy")
    assert list(theirs) == STEPS
    capsys.readouterr()

    slow = replace(experiment, optimization=replace(experiment.optimization, trunk_lr_factor=0.1))
    result = run(slow)
    assert read_curve(slow.folder / "target_only.json") == pytest.approx(theirs)
    ours, gaps = (column(slow.folder, name) for name in ("val/target/accuracy", METRIC))
    assert gaps == pytest.approx({step: ours[step] - theirs[step] for step in STEPS})
    assert METRIC not in (alone.folder / "metrics.csv").read_text()
    kept = json.loads((slow.folder / "result.json").read_text())["target_only"]
    assert kept == json.loads(json.dumps(result["target_only"]))
    assert kept["val_accuracy"] == pytest.approx(max(theirs.values()))
    assert kept["gap"] == pytest.approx(max(ours.values()) - max(theirs.values()))
    gap = f"{100 * kept['gap']:+.1f} points"
    assert f"transfer   {gap} over the target alone" in capsys.readouterr().out
    assert f"Validation accuracy is {gap}" in (slow.folder / "report.html").read_text(encoding="utf-8")


def planted(experiment: Experiment, accuracy: float) -> None:
    """The run's folder says that the target alone reached ``accuracy`` at every validation."""
    experiment.folder.mkdir()
    (experiment.folder / "target_only.json").write_text(json.dumps({"curve": dict.fromkeys(STEPS, accuracy)}))


@pytest.fixture
def unlearning(experiment: Experiment) -> Experiment:
    """A run that never moves from where it began, at chance or near it."""
    return replace(experiment, augment=False, optimization=Optimization(partial(torch.optim.SGD, lr=0.0), 1.0))


def test_a_warning_says_when_the_source_does_harm(unlearning: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    planted(unlearning, 1.0)
    result = run(unlearning)
    told = capsys.readouterr().out
    assert told.count("negative transfer") == 1
    assert "method.lambda_source (now 1)" in told
    assert "method=target_only" in told
    for other in ("lambda_ot", "cost", "pretrain=none", "penalty"):  # what this run does not have
        assert other not in told.partition("What may help")[2].splitlines()[0]
    assert f"{PATIENCE} validations in a row" in told
    before, _, _ = told.partition("negative transfer")
    assert "points over the target alone" not in before  # it came while training
    assert result["target_only"]["negative"] is True
    assert "This is negative transfer" in (unlearning.folder / "report.html").read_text(encoding="utf-8")


def test_no_warning_where_it_does_not(unlearning: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    planted(unlearning, 0.0)
    result = run(unlearning)
    assert "negative transfer" not in capsys.readouterr().out
    assert result["target_only"]["negative"] is False


class Trained:
    """What a trainer shows to the callback, at a validation after so many steps."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, float]] = []
        self.loggers = [SimpleNamespace(log_metrics=lambda values, step: self.logged.append((step, values[METRIC])))]
        self.is_global_zero, self.sanity_checking, self.global_step = True, False, 0
        self.state = SimpleNamespace(fn="fit")
        self.callback_metrics: dict[str, Any] = {}

    def validate(self, watched: CompareTargetOnly, step: int, accuracy: float) -> None:
        self.global_step, self.callback_metrics = step, {"val/target/accuracy": torch.tensor(accuracy)}
        watched.on_validation_end(self, None)  # type: ignore[arg-type]


def test_the_early_warning_waits_for_a_run_of_bad_validations(capsys: pytest.CaptureFixture[str]) -> None:
    trainer, watched = Trained(), CompareTargetOnly(dict.fromkeys(range(1, 9), 0.8), 100, "nothing")
    worse, within = 0.6, 0.7  # 0.8 - two standard errors of 0.061 or 0.063 lies between them
    assert is_below(worse, 0.8, 100)
    assert not is_below(within, 0.8, 100)
    for step, accuracy in enumerate([worse, worse, within, worse, worse], start=1):
        trainer.validate(watched, step, accuracy)
    assert capsys.readouterr().out == ""
    trainer.validate(watched, 6, worse)
    assert capsys.readouterr().out.count(f"{PATIENCE} validations in a row") == 1
    trainer.validate(watched, 7, worse)
    watched.on_train_end(trainer, None)  # type: ignore[arg-type]
    told = capsys.readouterr().out
    assert "negative transfer" not in told  # once is enough
    assert "-10.0 points" in told
    assert trainer.logged[2] == (2, pytest.approx(-0.1))


def test_a_resumed_run_goes_on_counting_and_does_not_warn_twice(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trained()

    def watcher() -> CompareTargetOnly:
        return CompareTargetOnly(dict.fromkeys(range(1, 9), 0.8), 100, "nothing")

    first, second, third = watcher(), watcher(), watcher()
    trainer.validate(first, 1, 0.1)
    trainer.validate(first, 2, 0.1)
    second.load_state_dict(first.state_dict())
    trainer.validate(second, 3, 0.1)
    assert capsys.readouterr().out.count("negative transfer") == 1
    third.load_state_dict(second.state_dict())
    trainer.validate(third, 4, 0.1)
    third.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert "negative transfer" not in capsys.readouterr().out


def test_other_processes_and_evaluations_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    trainer, watched = Trained(), CompareTargetOnly({1: 1.0}, 100, "nothing")
    trainer.is_global_zero = False
    trainer.validate(watched, 1, 0.0)
    watched.on_train_end(trainer, None)  # type: ignore[arg-type]
    trainer.is_global_zero, trainer.state.fn = True, "validate"  # of the chosen checkpoint, at the end
    trainer.validate(watched, 2, 0.0)
    assert (capsys.readouterr().out, trainer.logged, list(watched.curve)) == ("", [], [1])


def test_standard_error_of_a_difference() -> None:
    assert standard_error(0.5, 0.5, 200) == pytest.approx(math.sqrt(0.25 / 200 + 0.25 / 200))
    assert standard_error(0.9, 0.6, 50) == pytest.approx(math.sqrt(0.09 / 50 + 0.24 / 50))


# Which runs are comparable.


def test_what_has_nothing_of_the_source(experiment: Experiment) -> None:
    adamw = Optimization(partial(torch.optim.AdamW, lr=1e-2), 1.0)
    pretraining = Pretraining(Budget(1, 3, 8, 1), 0, adamw)
    assert _is_target_only(replace(experiment, method=ALONE))
    assert not _is_target_only(experiment)
    both = replace(ALONE, lambda_source=1.0)
    for method in (both, replace(both, lambda_ot=1.0), replace(ALONE, penalty=BSS())):
        assert not _is_target_only(replace(experiment, method=method))
    assert not _is_target_only(replace(experiment, method=ALONE, trunk={"freeze": True}))
    assert not _is_target_only(replace(experiment, method=ALONE, pretraining=pretraining))  # fine-tuning


@pytest.mark.parametrize("content", ["", "[]", '{"curve": 3}', '{"curve": {}}', '{"curve": {"a": 1}}'])
def test_a_broken_file_counts_as_none(content: str, tmp_path: Path) -> None:
    path = tmp_path / "target_only.json"
    path.write_text(content)
    assert read_curve(path) is None


def test_the_comparison_leaves_the_run_itself_as_it_was(experiment: Experiment, tmp_path: Path) -> None:
    plain = run(replace(experiment, compare_target_only=False, folder=tmp_path / "plain"))
    assert plain["target_only"] is None
    assert not (tmp_path / "plain" / "target_only.json").exists()
    compared = run(experiment)
    assert (compared["target"], compared["source"]) == (plain["target"], plain["source"])


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target alone is not trained again."""
    whole = replace(experiment, folder=tmp_path / "whole")
    expected = run(whole)["target_only"]
    with monkeypatch.context() as patch:
        patch.setattr("jtln.training.trainer.CSVLogger", CutOff)
        patch.setattr("signal.signal", lambda *_: None)  # Lightning would ignore Ctrl-C from now on
        with pytest.raises(KeyboardInterrupt):
            run(experiment)
    monkeypatch.setattr("jtln.training.run._curve", lambda *_: pytest.fail("trained again"))
    assert run(replace(experiment, resume=True))["target_only"] == expected
    gaps = [column(each.folder, METRIC) for each in (whole, experiment)]
    assert gaps[0] == gaps[1]
    assert list(gaps[0]) == STEPS


class CutOff(CSVLogger):
    """Ctrl-C in the third epoch."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        if step == 9:
            raise KeyboardInterrupt
