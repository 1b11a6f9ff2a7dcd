"""A study: tune every row alike, make all runs, report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jtln import __version__
from jtln.errors import UserError
from jtln.reporting.evidence import gather
from jtln.reporting.naming import Run
from jtln.reporting.study_page import show_evidence, write_evidence
from jtln.study.job import Job, spelled
from jtln.study.launch import Done, Launch, Runs
from jtln.study.ledger import Ledger
from jtln.study.tuning import Search, Tuned, run_searches, storage_in
from jtln.training.provenance import git_commit


@dataclass(frozen=True)
class Labels:
    """A number of labelled target images: a text, and the overrides that set it."""

    words: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A row of the study's table.

    Attributes:
        name: unique in the study.
        job: the run with further values, a number of labels, a seed and the number of its tuning trial or None.
        space: what is tuned, as :class:`Search` takes it.
        current: the values that are configured for the keys of ``space``.
        config: as composed, without labels and seed; None where nobody asks.
    """

    name: str
    job: Callable[[Mapping[str, Any], Labels, int, int | None], Job]
    space: Mapping[str, Any] = field(default_factory=dict)
    current: Mapping[str, Any] = field(default_factory=dict)
    config: Any = None


@dataclass(frozen=True)
class Tuning:
    """The search for every row's hyper-parameters.

    Each row has ``trials`` trials, compared by the mean validation accuracy of the runs with these seeds and numbers of
    labels.
    """

    trials: int
    seeds: tuple[int, ...]
    labels: tuple[Labels, ...]
    sampler_seed: int = 0
    margin: float = 2.0


@dataclass(frozen=True)
class Study:
    """The runs of a study, and the place of their results.

    Attributes:
        name: of the study's file.
        folder: gets the tables, plots and report.
        runs: holds the run folders, which all studies share.
        against: the rows that every other row is compared with.
        command: the command that the user typed.
    """

    name: str
    folder: Path
    runs: Path
    rows: tuple[Row, ...]
    labels: tuple[Labels, ...]
    seeds: tuple[int, ...]
    against: tuple[str, ...]
    tuning: Tuning
    command: str

    def __post_init__(self) -> None:
        """Refuse what cannot be before anything runs."""
        if shared := set(self.seeds) & set(self.tuning.seeds if self.tuning.trials else ()):
            raise UserError(
                f"expected study.tune.seeds to be other seeds than study.seeds, which test, but both have "
                f"{', '.join(map(str, sorted(shared)))}"
            )


def run_study(study: Study, launch: Launch) -> bool:
    """Tune where that is asked for, make the missing runs, and report; return True if all runs succeeded.

    Raises:
        UserError: every tuning trial of every row failed.
        KeyboardInterrupt: Ctrl-C; the runs that were made are kept.
    """
    chosen = _tuned(study, launch) if study.tuning.trials else {}
    lost = [row for row in study.rows if study.tuning.trials and row.space and row.name not in chosen]
    for row in lost:
        print(f"failed: every tuning trial of {row.name}, which the study is made without: see the messages above")
    rows = [row for row in study.rows if row not in lost]
    if not rows:
        raise UserError(f"expected a row to make the study of, but every tuning trial failed; again: {study.command}")
    runs = [(row, labels, seed) for seed in study.seeds for labels in study.labels for row in rows]
    jobs = [row.job(chosen.get(row.name, {}), labels, seed, None) for row, labels, seed in runs]
    ledger = Ledger(study.runs)
    known = [result for job in jobs if (result := ledger.result(job)) is not None]
    sizes = f"{len(rows)} x {len(study.labels)} x {len(study.seeds)} = {len(jobs)} runs, of which {len(known)} are done"
    print(f"study {study.name}: rows x numbers of labels x seeds: {sizes}; {launch.described}", flush=True)
    if note := of_other_code(known, git_commit(), __version__):
        print(f"note: {note}; to have these made anew, move their folders out of {study.runs}", flush=True)
    ended = Runs(launch, ledger, len(jobs)).make(jobs)
    failed = [done for done in ended if done.result is None]

    study.folder.mkdir(parents=True, exist_ok=True)
    results = [Run(done.job.row, done.result, ledger.folder_of(done.job)) for done in ended if done.result is not None]
    if results:
        evidence = gather(results, study.against)
        show_evidence(evidence)
        page = write_evidence(evidence, study.folder, f"Study {study.name}", study.command)
        print(f"\nreport: {page}")
    for done in failed:
        print(f"failed: {_name(done)}: {done.error}")
    if failed:
        print(f"{len(failed)} of {len(jobs)} runs failed; the same command tries them again: {study.command}")
    return not (failed or lost)


def of_other_code(results: Iterable[Mapping[str, Any]], commit: str | None, release: str) -> str | None:
    """Return a warning about finished results of other code than this, which count all the same; None without any.

    Args:
        results: as in ``result.json``.
        commit: of the code that runs, "-dirty" at its end where it has changed since; None in an installed package.
        release: of the code that runs.
    """
    others: Counter[str] = Counter()
    for result in results:
        theirs, version_then = result.get("git_commit"), result.get("versions", {}).get("jtln", release)
        if version_then != release:
            others[f"version {version_then}"] += 1
        elif theirs and commit and (theirs != commit or theirs.endswith("-dirty")):
            others[f"commit {theirs[:7]}{'-dirty' * theirs.endswith('-dirty')}"] += 1
    if not others:
        return None
    listed = ", ".join(f"{count} of {code}" for code, count in sorted(others.items()))
    return f"finished runs are of other code than this, or may be ({listed})"


def _name(done: Done) -> str:
    return f"{done.job.row}, {done.job.labels}, seed {done.job.seed}"


def _tuned(study: Study, launch: Launch) -> dict[str, dict[str, Any]]:
    """Search every row's hyper-parameters, write the chosen values to tuned.json, and return them by row."""
    tuning, ledger = study.tuning, Ledger(study.runs.parent / "trials")
    searched = [row for row in study.rows if row.space]
    per_trial = len(tuning.seeds) * len(tuning.labels)
    runs = Runs(launch, ledger, len(searched) * tuning.trials * per_trial, show_test=False)
    replayed: list[dict[str, Any]] = []

    def make(jobs: Sequence[Job]) -> list[Done]:
        replayed.extend(result for job in jobs if (result := ledger.result(job)) is not None)
        return runs.make(jobs)

    def jobs_of(row: Row) -> Callable[[int, Mapping[str, Any]], list[Job]]:
        return lambda trial, values: [
            row.job(values, labels, seed, trial) for seed in tuning.seeds for labels in tuning.labels
        ]

    print(
        f"tuning {len(searched)} rows on validation: {tuning.trials} trials each, {per_trial} runs a trial "
        f"(seeds {', '.join(map(str, tuning.seeds))}; {', '.join(labels.words for labels in tuning.labels)})",
        flush=True,
    )
    storage = storage_in(study.folder)
    seed, margin = tuning.sampler_seed, tuning.margin
    tuned = run_searches(
        [Search(r.name, r.space, r.current, tuning.trials, jobs_of(r), seed, margin, storage) for r in searched], make
    )
    if note := of_other_code(replayed, git_commit(), __version__):
        print(
            f"note: of the trials, {note}; to have these made anew, move their folders out of {ledger.folder}",
            flush=True,
        )
    study.folder.mkdir(parents=True, exist_ok=True)
    _write_tuned(study, tuned)
    for row, choice in tuned.items():
        values = " ".join(spelled(key, value) for key, value in choice.values.items())
        kept = "as configured, " if choice.kept else ""
        print(f"tuned      {row}: {kept}{values} (validation {100 * choice.validation:.1f} %)")
    return {row: choice.values for row, choice in tuned.items()}


def _write_tuned(study: Study, tuned: Mapping[str, Tuned]) -> None:
    facts = {
        "trials": study.tuning.trials,
        "seeds": study.tuning.seeds,
        "labels": [labels.words for labels in study.tuning.labels],
        "chosen_on": "target validation accuracy, mean over seeds and numbers of labels; the values as configured stay "
        "unless another trial is better by more than the margin, in standard errors of the difference",
        "margin": study.tuning.margin,
        "rows": {
            row.name: {
                "space": row.space,
                "overrides": [spelled(key, value) for key, value in tuned[row.name].values.items()],
                "validation": tuned[row.name].validation,
                "as_configured": tuned[row.name].kept,
            }
            for row in study.rows
            if row.name in tuned
        },
    }
    (study.folder / "tuned.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
