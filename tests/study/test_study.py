"""Ledger, batches of jobs and search, with a launcher whose jobs only write a result."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hydra.core.utils import JobReturn, JobStatus
from optuna.distributions import FloatDistribution
from scipy.stats import binom

from jtln.errors import UserError
from jtln.reporting.numbers import clock
from jtln.study.job import Job, settings_hash
from jtln.study.launch import LOCKED, Done, Launch, Runs
from jtln.study.ledger import Ledger, result_of
from jtln.study.tuning import Search, Tuned, _holds, run_searches, storage_in


def job(name: str, trunk: str | None = None, **more: Any) -> Job:
    return Job(name, "1 shot", 0, (f"row={name}",), f"hash{name}", trunk, **more)


def write_result(folder: Path, settings: str, val: float = 0.5) -> None:
    figures = {"accuracy": val, "n": 100}
    facts = {"target": {"test": figures, "val": figures}, "seed": 0, "settings": {"run": settings}, "seconds": 1.0}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(facts), encoding="utf-8")


class Fake:
    """In place of one of Hydra's launchers: its jobs write the result that the folder's name promises.

    Args:
        fails: a job whose first override has one of these fails.
        dies: with such a job the process of the launcher ends, and the whole batch is lost.
        locked: a job for which this holds is left to another process.
    """

    def __init__(
        self,
        fails: Sequence[str] = (),
        dies: Sequence[str] = (),
        locked: Callable[[str], bool] = lambda name: False,
        val: Callable[[Sequence[str]], float] = lambda _: 0.5,
    ) -> None:
        self.fails, self.dies, self.locked, self.val = fails, dies, locked, val
        self.batches: list[list[str]] = []
        self.calls: list[list[str]] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.batches.append([call[0] for call in job_overrides])
        if any(each in call[0] for each in self.dies for call in job_overrides):
            raise ChildProcessError("killed\nby the system")
        return [self._job(list(call)) for call in job_overrides]

    def _job(self, call: list[str]) -> JobReturn:
        self.calls.append(call)
        folder = Path(*(each.partition("=")[2].strip('"') for each in call[-2:]))
        failed = any(each in call[0] for each in self.fails)
        if failed:
            return JobReturn(_return_value=RuntimeError("something is wrong"), status=JobStatus.FAILED)
        if self.locked(call[0]):
            return JobReturn(_return_value=LOCKED, status=JobStatus.COMPLETED)
        if "pretrain.only=true" not in call:
            write_result(folder, folder.name.rpartition("_")[2], self.val(call))
        return JobReturn(_return_value=None, status=JobStatus.COMPLETED)


def runs(launcher: Fake, folder: Path, total: int = 3, batch: int | None = None, **more: Any) -> Runs:
    return Runs(Launch(launcher, "fake", batch, ("report=false",)), Ledger(folder), total, **more)


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jtln.study.launch._POLL", 0.01)


def test_missing_runs_are_made_once_in_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher, jobs = Fake(), [job("a"), job("b"), job("c"), job("d"), job("a")]
    write_result(tmp_path / "under-another-name", "hashb")
    ended = runs(launcher, tmp_path, 5, batch=2).make(jobs)
    assert [done.job.row for done in ended] == ["a", "b", "c", "d", "a"]
    assert all(done.result for done in ended)
    assert launcher.batches == [["row=a", "row=c"], ["row=d"]]
    assert launcher.calls[0][1:] == [
        "report=false",
        f'hydra.sweep.dir="{tmp_path}"',
        'hydra.sweep.subdir="a_1-shot_seed-0_hasha"',
    ]
    told = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in told] == ["[3/5]", "[4/5]", "[5/5]"]
    assert "a, 1 shot, seed 0" in told[0]
    again = Fake()
    assert [done.job.row for done in runs(again, tmp_path).make(jobs[:3])] == ["a", "b", "c"]
    assert again.batches == []


def test_a_job_that_fails_lets_the_others_go_on_and_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = runs(Fake(fails=["a"]), tmp_path).make([job("a"), job("b")])
    assert [(done.job.row, done.error) for done in ended] == [("a", "something is wrong"), ("b", None)]
    assert "FAILED: something is wrong" in capsys.readouterr().out
    assert all(done.result for done in runs(Fake(), tmp_path).make([job("a"), job("b")]))


def test_where_a_process_dies_the_jobs_of_its_batch_are_launched_one_by_one(tmp_path: Path) -> None:
    launcher = Fake(dies=["b"])
    ended = runs(launcher, tmp_path).make([job("a"), job("b"), job("c")])
    assert [done.error for done in ended] == [None, "the launcher failed: ChildProcessError: killed", None]
    assert launcher.batches == [["row=a", "row=b", "row=c"], ["row=a"], ["row=b"], ["row=c"]]


def test_shared_trunks_come_first_and_a_failed_one_fails_its_runs(tmp_path: Path) -> None:
    jobs = [job("a", "one"), job("b", "one"), job("c", "two"), job("d")]
    launcher = Fake()
    assert all(done.result for done in runs(launcher, tmp_path / "runs", 4).make(jobs))
    assert launcher.batches == [["row=a"], ["row=a", "row=b", "row=c", "row=d"]]
    assert launcher.calls[0][1:3] == ["pretrain.only=true", "report=false"]
    assert launcher.calls[0][3:] == [f'hydra.sweep.dir="{tmp_path}/trunks"', 'hydra.sweep.subdir="one"']
    ended = runs(launcher := Fake(fails=["a"]), tmp_path / "others", 4).make(jobs)
    assert [done.error for done in ended] == ["its pre-training failed: something is wrong"] * 2 + [None] * 2
    assert launcher.batches == [["row=a"], ["row=c", "row=d"]]


HOLD = """
import sys, pathlib
from jtln.study.ledger import held
with held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_run_that_another_process_makes_is_skipped_and_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is free again when that process is killed, and then made here."""
    ledger, folder = Ledger(tmp_path), tmp_path / job("a").folder_name
    assert not ledger.is_under_way(job("a"))  # there is no folder yet
    folder.mkdir()
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    assert ledger.is_under_way(job("a"))
    launcher = Fake(locked=lambda name: name == "row=a" and other.poll() is None)
    waits = iter(range(10))

    def sleep(_: float) -> None:
        if next(waits) == 2:
            other.kill()  # as the operating system or a user may
            other.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jtln.study.launch.time", SimpleNamespace(sleep=sleep, perf_counter=time.perf_counter))
        ended = runs(launcher, tmp_path).make([job("a"), job("b")])
    assert all(done.result for done in ended)
    assert launcher.batches == [["row=a", "row=b"], ["row=a"]]
    assert capsys.readouterr().out.count("skipped    1 runs") == 1
    assert result_of(folder) is not None


def test_a_result_of_other_settings_does_not_count(tmp_path: Path) -> None:
    launcher = Fake()
    launcher._job = lambda call: (  # type: ignore[method-assign]
        write_result(tmp_path / job("a").folder_name, "other") or JobReturn(status=JobStatus.COMPLETED)  # type: ignore[func-returns-value]
    )
    (done,) = runs(launcher, tmp_path).make([job("a")])
    assert done.error == "it ended without a result of the settings that it was given"


def test_clock() -> None:
    assert [clock(s) for s in (5, 600, 12000)] == ["5 s", "10 min", "3 h 20 min"]


# Tuning.


def searches(
    trials: int,
    space: Mapping[str, Any],
    seeds: Sequence[int] = (7,),
    labels: Sequence[int] = (1,),
    storage: Any = None,
) -> list[Search]:
    def jobs(trial: int, values: Mapping[str, Any]) -> list[Job]:
        text = ",".join(f"{key}={value}" for key, value in values.items())
        return [
            Job("row", f"{shots} shots", s, (text,), settings_hash({**values, "s": s, "shots": shots}), None, trial)
            for s in seeds
            for shots in labels
        ]

    return [Search("row", space, {"x": 4.0}, trials, jobs, storage=storage)]


def score(arguments: Sequence[str]) -> float:
    """Best at x = 1."""
    values = dict(each.split("=") for each in arguments[0].split(","))
    return 1 / (1 + abs(float(values["x"]) - 1))


SPACE = {"x": [0.0, 10.0], "n": [1, 5, "int"], "kind": {"choices": ["a", "b"]}}


def test_the_search_starts_with_what_is_configured_and_finds_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = Fake(val=score)
    tuned = run_searches(searches(15, SPACE, (7, 8)), runs(launcher, tmp_path, 30, show_test=False).make)["row"]
    assert len(tuned.trials) == 15
    assert tuned.trials[0][0]["x"] == 4.0
    assert tuned.validation == max(value for _, value in tuned.trials if value is not None)
    assert abs(tuned.values["x"] - 1) < 1
    assert not tuned.kept
    assert len(launcher.calls) <= 30
    told = capsys.readouterr().out
    assert "test" not in told
    assert "seed 8, trial 3" in told


def test_a_search_goes_on_from_its_storage_and_its_runs(tmp_path: Path) -> None:
    """The same trials follow as without an interruption, and without the storage."""

    def run(trials: int, folder: str = "one", storage: Any = None) -> tuple[Tuned, int]:
        launcher = Fake(val=score)
        made = runs(launcher, tmp_path / folder, trials).make
        return run_searches(searches(trials, SPACE, storage=storage), made)["row"], len(launcher.calls)

    def kept() -> Any:
        return storage_in(tmp_path)

    first, made = run(10, storage=kept())
    assert made == 10
    assert run(10, storage=kept()) == (first, 0)
    searches(11, SPACE, storage=kept())[0]._study.ask()  # a trial that was under way when the process was killed
    more, made = run(12, storage=kept())
    assert (more.trials[:10], made) == (first.trials, 2)
    assert run(10, "two") == (first, 10)
    (summary,) = optuna.get_all_study_summaries(storage=kept())
    trials = optuna.load_study(study_name=summary.study_name, storage=kept()).get_trials()
    assert [trial.value for trial in trials] == [value for _, value in more.trials]
    assert searches(3, {"x": [0.0, 9.0]}, storage=kept())[0]._study.get_trials()[1:] == []  # another space


def test_what_is_configured_stays_unless_a_trial_beats_it_by_more_than_the_error() -> None:
    """0.5 and p over 2 x 12 images, one more right and one more wrong: the difference of two binomial shares."""

    def error(p: float, n: int = 24) -> float:
        return math.sqrt(sum(binom.var(n + 2, (n * q + 1) / (n + 2)) for q in (0.5, p))) / (n + 2)

    def chosen(
        best: float,
        margin: float = 2.0,
        space: Mapping[str, Any] | None = None,
        labels: Sequence[int] = (1,),
        configured: float = 0.5,
        last: float | None = 0.4,
    ) -> Tuned:
        search = searches(3, space or {"x": [0.0, 10.0]}, (7, 8), labels)[0]
        search.margin = margin
        for accuracy in (configured, best, last):
            found = None if accuracy is None else {"target": {"val": {"accuracy": accuracy, "n": 12}}}
            for each in search.ask():
                search.take(Done(each, found))
        return search.tuned()

    assert 2 * error(0.76) > 0.76 - 0.5
    assert 2 * error(0.77) < 0.77 - 0.5
    assert chosen(0.76) == Tuned({"x": 4.0}, 0.5, chosen(0.76).trials, kept=True)
    assert chosen(0.77) == Tuned(chosen(0.77).trials[1][0], 0.77, chosen(0.77).trials)
    assert chosen(0.76, labels=(1, 5, 10)).kept  # whatever is labelled, a seed's validation images are the same
    assert chosen(1.0, configured=23 / 24).kept  # all right is no certainty
    assert chosen(0.501, margin=0).validation == 0.501
    assert chosen(0.8, margin=3).kept
    assert chosen(0.76, space={"x": [5.0, 10.0]}).kept  # what is configured lies outside, and is tried all the same
    assert chosen(0.76, space={"x": [5.0, 10.0]}).trials[0] == ({"x": 4.0}, 0.5)
    assert not chosen(0.501, space={"x": [0.0, 10.0], "n": [1, 5, "int"]}).kept  # n is not configured
    assert not chosen(0.77, last=None).kept  # a trial that fails takes no images away
    assert chosen(0.76, last=None).kept


def test_trials_that_fail(tmp_path: Path) -> None:
    failing = runs(Fake(fails=["x="]), tmp_path)
    assert run_searches(searches(2, SPACE), failing.make) == {}  # the row is left out
    search = searches(2, {"x": [0.0, 10.0]})[0]
    for result in (None, {"target": {"val": {"accuracy": 0.25, "n": 4}}}):
        (each,) = search.ask()
        search.take(Done(each, result))
    assert search.tuned().validation == 0.25
    assert search.tuned().trials[0][1] is None


@pytest.mark.parametrize("wrong", [[1], [2, 1], [0, 1, "log"], ["a", "b"], {"choices": []}, 3, [1, 2, "linaer"]])
def test_a_space_that_cannot_be(wrong: Any) -> None:
    with pytest.raises(UserError, match="tuning space of x to be"):
        searches(1, {"x": wrong})


def test_what_is_configured_may_lie_outside_the_space(tmp_path: Path) -> None:
    """It is the first trial all the same."""
    for space, best in (({"x": {"choices": [1.0, 2.0]}}, {1.0, 2.0}), ({"x": [5.0, 10.0, "log"]}, {4.0})):
        tuned = run_searches(searches(3, space), runs(Fake(val=score), tmp_path).make)["row"]
        assert tuned.trials[0] == ({"x": 4.0}, 0.25)
        assert 4.0 not in {values["x"] for values, _ in tuned.trials[1:]}
        assert tuned.values["x"] in best
    assert not _holds(FloatDistribution(1e-3, 1.0, log=True), 0.0)
