"""Jobs, ledger, schedule and search, with workers that only write a result."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from scipy.stats import binom

from jtln.errors import UserError
from jtln.reporting.numbers import clock
from jtln.study.job import Job, settings_hash
from jtln.study.ledger import Ledger
from jtln.study.schedule import Done, Schedule
from jtln.study.tuning import Search, Tuned, _holds, run_searches
from jtln.study.workers import InThisProcess, Process, environments, last_words


def job(name: str, trunk: str | None = None, **more: Any) -> Job:
    return Job(name, "1 shot", 0, (f"row={name}",), f"hash{name}", trunk, **more)


def write_result(folder: Path, settings: str, val: float = 0.5) -> None:
    figures = {"accuracy": val, "n": 100}
    facts = {"target": {"test": figures, "val": figures}, "seed": 0, "settings": {"run": settings}, "seconds": 1.0}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(facts), encoding="utf-8")


def folder_in(arguments: Sequence[str]) -> Path:
    return Path(arguments[-1].partition("=")[2].strip('"'))


class Trainer:
    """In place of training: writes the result that the folder's name promises; keeps what it was asked."""

    def __init__(self, fails: Sequence[str] = (), val: Callable[[Sequence[str]], float] = lambda _: 0.5) -> None:
        self.fails, self.val, self.calls = fails, val, list[list[str]]()

    def __call__(self, arguments: list[str]) -> int:
        self.calls.append(arguments)
        folder = folder_in(arguments)
        if any(each in arguments[0] for each in self.fails):
            print("error: something is wrong")
            return 2
        write_result(folder, folder.name.rpartition("_")[2], self.val(arguments))
        for name in ("best.ckpt", "last.ckpt"):
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / name).write_text("weights")
        return 0


def test_jobs_are_made_once_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer()
    jobs = [job("a"), job("b"), job("c")]
    write_result(tmp_path / "under-another-name", "hashb")
    ended = Schedule(Ledger(tmp_path), [InThisProcess(trainer)], ["--config-dir", "x"]).run(jobs, 3)
    assert sorted(done.job.row for done in ended) == ["a", "b", "c"]
    assert all(done.result for done in ended)
    assert [call[2] for call in trainer.calls] == ["row=a", "row=c"]
    assert trainer.calls[0][:2] == ["--config-dir", "x"]
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert "a, 1 shot, seed 0" in told[0]
    assert "left" in told[0]
    Schedule(Ledger(tmp_path), [InThisProcess(trainer)]).run(reversed(jobs), 3)
    assert len(trainer.calls) == 2  # nothing was left to do
    assert [path.name for path in tmp_path.glob("a_*/checkpoints/*")] == ["best.ckpt"]  # what resumes is of no more use


def test_a_job_that_fails_lets_the_others_go_on_and_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = Schedule(Ledger(tmp_path), [InThisProcess(Trainer(fails="a"))]).run([job("a"), job("b")], 2)
    errors = {done.job.row: done.error for done in ended}
    assert errors["b"] is None
    assert errors["a"] is not None
    assert errors["a"].startswith("something is wrong (see ")
    assert "FAILED: something is wrong" in capsys.readouterr().out
    again = Schedule(Ledger(tmp_path), [InThisProcess(Trainer())]).run([job("a"), job("b")], 2)
    assert all(done.result for done in again)


def test_what_was_cut_off_is_resumed_and_begun_anew_where_that_fails(tmp_path: Path) -> None:
    folder = tmp_path / "a_1-shot_seed-0_hasha"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_text("half of one")
    (folder / "overrides.yaml").write_text("[]")
    calls = []

    def train(arguments: list[str]) -> int:
        calls.append(arguments[-1])
        if arguments[-1].startswith("resume="):
            return 1
        assert not (folder / "checkpoints").exists()
        return Trainer()(arguments)

    (done,) = Schedule(Ledger(tmp_path), [InThisProcess(train)]).run([job("a")], 1)
    assert done.result
    assert calls == [f'resume="{folder}"', f'hydra.run.dir="{folder}"']


def test_a_run_that_another_study_is_at_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jtln.study.schedule._POLL", 0.01)
    other, trainer, ended = Ledger(tmp_path), Trainer(), list[Done]()
    assert other.claim(job("a"))
    assert not Ledger(tmp_path).claim(job("a"))
    schedule = Schedule(Ledger(tmp_path), [InThisProcess(trainer)])
    thread = threading.Thread(target=lambda: ended.extend(schedule.run([job("a")], 1)), daemon=True)
    thread.start()
    time.sleep(0.1)
    assert not ended
    write_result(tmp_path / "a_hasha", "hasha")
    other.release(job("a"))
    thread.join(600)
    assert [done.error for done in ended] == [None]
    assert not trainer.calls


class Slow:
    """A worker whose runs end when the test says so."""

    def __init__(self) -> None:
        self.started: list[Path] = []
        self.done: Callable[[int], None] = lambda code: None
        self.stopped = False

    def start(self, arguments: Sequence[str], log: Path, done: Callable[[int], None]) -> None:
        self.started.append(folder_in(arguments))
        self.done = done

    def finish(self) -> None:
        write_result(self.started[-1], self.started[-1].name.rpartition("_")[2])
        self.done(0)

    def stop(self) -> None:
        self.stopped = True


def wait_for(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 600  # on a busy machine
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_trunk_is_trained_by_one_run_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jtln.study.schedule._POLL", 0.01)
    first, second, third = workers = [Slow(), Slow(), Slow()]
    schedule = Schedule(Ledger(tmp_path), workers)
    jobs = [job("a", "trunk"), job("b", "trunk"), job("c")]
    thread = threading.Thread(target=schedule.run, args=(jobs, 3), daemon=True)
    thread.start()
    wait_for(lambda: first.started and second.started)
    time.sleep(0.1)  # in which the third would start
    assert [len(worker.started) for worker in workers] == [1, 1, 0]
    assert "c_" in second.started[0].name  # needs no trunk
    (first.started[0] / "checkpoints").mkdir()
    (first.started[0] / "checkpoints" / "last.ckpt").write_text("")  # the trunk is there, the run goes on
    wait_for(lambda: third.started)
    assert "b_" in third.started[0].name
    for worker in workers:
        worker.finish()
    thread.join(600)
    assert not thread.is_alive()


def test_ctrl_c_stops_the_workers(tmp_path: Path) -> None:
    class Interrupted(Slow):
        def start(self, arguments: Sequence[str], log: Path, done: Callable[[int], None]) -> None:
            super().start(arguments, log, done)
            threading.Timer(0.05, lambda: signal.raise_signal(signal.SIGINT)).start()

    worker = Interrupted()
    schedule = Schedule(Ledger(tmp_path), [worker])
    with pytest.raises(KeyboardInterrupt):
        schedule.run([job("a")], 1)
    assert worker.stopped
    assert Ledger(tmp_path).claim(job("a"))


ECHO = """
import json, os, sys
for line in sys.stdin:
    message = json.loads(line)
    if message["arguments"] == ["die"]:
        os._exit(3)
    open(message["log"], "w").write(os.environ["SHARE"])
    print(7, flush=True)
"""


def test_a_process_answers_and_is_replaced_when_it_dies(tmp_path: Path) -> None:
    worker, log = Process([sys.executable, "-c", ECHO], {"SHARE": "mine"}), tmp_path / "log.txt"
    codes: list[int] = []
    for arguments in (["a"], ["die"], ["b"]):
        ended = threading.Event()
        worker.start(arguments, log, lambda code, ended=ended: (codes.append(code), ended.set()))  # type: ignore[misc]
        assert ended.wait(600)
    assert codes == [7, 3, 7]
    assert log.read_text() == "mine"
    worker.stop()
    assert worker._process is not None
    assert worker._process.poll() is not None


def test_a_process_for_every_run_where_that_is_asked_for(tmp_path: Path) -> None:
    worker, log = Process([sys.executable, "-c", ECHO], {"SHARE": "mine"}, anew=True), tmp_path / "log.txt"
    made: list[int] = []
    for arguments in (["a"], ["die"], ["b"]):
        ended, codes = threading.Event(), list[int]()
        worker.start(arguments, log, lambda code, ended=ended, codes=codes: (codes.append(code), ended.set()))  # type: ignore[misc]
        assert ended.wait(600)
        assert worker._process is not None
        assert worker._process.poll() is not None  # before the next one starts
        assert codes == [3 if arguments == ["die"] else 7]
        made.append(worker._process.pid)
    assert len(set(made)) == 3
    worker.stop()


def test_shares_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jtln.study.workers._cores", lambda: 8)
    monkeypatch.setattr("jtln.study.workers._gpus", lambda: [])
    monkeypatch.setattr("jtln.study.workers._is_apple", lambda: False)
    assert [share["OMP_NUM_THREADS"] for share in environments("auto", "auto", 1)] == ["1"] * 8
    assert [share["OMP_NUM_THREADS"] for share in environments(3, "cpu", 1)] == ["2"] * 3
    monkeypatch.setattr("jtln.study.workers._gpus", lambda: ["2", "5"])
    shares = environments("auto", "auto", 1)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["2", "5"]
    assert [share["OMP_NUM_THREADS"] for share in shares] == ["4", "4"]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in environments(4, "gpu", 1)] == ["2", "5", "2", "5"]
    assert environments("auto", "auto", 4) == environments("auto", "gpu", "auto") == [{}]
    assert "CUDA_VISIBLE_DEVICES" not in environments("auto", "cpu", 1)[0]
    for wrong in (-1, "many", 1.5):
        with pytest.raises(UserError, match=r"study\.workers"):
            environments(wrong, "auto", 1)  # type: ignore[arg-type]


def test_last_words_and_clock(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert last_words(log) == "it said nothing"
    log.write_text("error: the first\nKeyError: 'x'\n\n")
    assert last_words(log) == "the first"
    log.write_text("Traceback\nKeyError: 'x'\n")
    assert last_words(log) == "KeyError: 'x'"
    assert [clock(s) for s in (5, 600, 12000)] == ["5 s", "10 min", "3 h 20 min"]


# Tuning.


def searches(
    trials: int, space: Mapping[str, Any], seeds: Sequence[int] = (7,), labels: Sequence[int] = (1,)
) -> list[Search]:
    def jobs(trial: int, values: Mapping[str, Any]) -> list[Job]:
        text = ",".join(f"{key}={value}" for key, value in values.items())
        return [
            Job("row", f"{shots} shots", s, (text,), settings_hash({**values, "s": s, "shots": shots}), None, trial)
            for s in seeds
            for shots in labels
        ]

    return [Search("row", space, {"x": 4.0}, trials, jobs)]


def score(arguments: Sequence[str]) -> float:
    """Best at x = 1."""
    values = dict(each.split("=") for each in arguments[0].split(","))
    return 1 / (1 + abs(float(values["x"]) - 1))


SPACE = {"x": [0.0, 10.0], "n": [1, 5, "int"], "kind": {"choices": ["a", "b"]}}


def test_the_search_starts_with_what_is_configured_and_finds_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(val=score)
    schedule = Schedule(Ledger(tmp_path), [InThisProcess(trainer)], show_test=False)
    tuned = run_searches(searches(15, SPACE, (7, 8)), schedule.run, 2)["row"]
    assert len(tuned.trials) == 15
    assert tuned.trials[0][0]["x"] == 4.0
    assert tuned.validation == max(value for _, value in tuned.trials if value is not None)
    assert abs(tuned.values["x"] - 1) < 1
    assert not tuned.kept
    assert len(trainer.calls) <= 30
    told = capsys.readouterr().out
    assert "test" not in told
    assert "seed 8, trial 3" in told


def test_a_search_is_replayed_and_more_trials_go_on_from_it(tmp_path: Path) -> None:
    def run(trials: int) -> tuple[Any, int]:
        trainer = Trainer(val=score)
        schedule = Schedule(Ledger(tmp_path), [InThisProcess(trainer)])
        return run_searches(searches(trials, SPACE), schedule.run, 1)["row"], len(trainer.calls)

    first, made = run(10)
    assert made == 10
    again, made = run(10)
    assert (again, made) == (first, 0)
    more, made = run(12)
    assert (more.trials[:10], made) == (first.trials, 2)


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
        jobs = search.begin()
        for accuracy in (configured, best, last):
            found = None if accuracy is None else {"target": {"val": {"accuracy": accuracy, "n": 12}}}
            for each in jobs:
                jobs = search.take(Done(each, found))
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
    schedule = Schedule(Ledger(tmp_path), [InThisProcess(Trainer(fails=["x="]))])
    assert run_searches(searches(2, SPACE), schedule.run, 1) == {}  # the row is left out
    search = searches(2, {"x": [0.0, 10.0]})[0]
    for result in (None, {"target": {"val": {"accuracy": 0.25, "n": 4}}}):
        (each,) = search._left if search._done else search.begin()
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
        schedule = Schedule(Ledger(tmp_path), [InThisProcess(Trainer(val=score))])
        tuned = run_searches(searches(3, space), schedule.run, 1)["row"]
        assert tuned.trials[0] == ({"x": 4.0}, 0.25)
        assert 4.0 not in {values["x"] for values, _ in tuned.trials[1:]}
        assert tuned.values["x"] in best
    assert not _holds(FloatDistribution(1e-3, 1.0, log=True), 0.0)
