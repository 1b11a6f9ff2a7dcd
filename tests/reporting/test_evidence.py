"""Evidence from results that are made up, so that it is known what has to come of it."""

from __future__ import annotations

import csv
import json
import math
from decimal import ROUND_HALF_UP, Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from jtln.errors import UserError
from jtln.reporting.evidence import DatasetEvidence, Evidence, gather, labels_of
from jtln.reporting.naming import Run
from jtln.reporting.predictions import Predictions, write_predictions
from jtln.reporting.sentences import correction, details, summary
from jtln.reporting.statistics import holm
from jtln.reporting.study_page import write_evidence
from jtln.study.ledger import read_results

NOISE = (0.3, -0.5, 0.1, 0.6, -0.4, 0.2, -0.1, -0.2)  # of a seed, the same for every row
OWN = (0.1, 0.0, -0.2, 0.1, 0.2, -0.1, 0.0, -0.1)  # of a row and a seed
OURS = "jtln_annealed + discriminant"  # as rows without a name of their own are called
MEANS = {  # method, cost -> test and validation accuracy in %
    ("consecutive", None): (60.0, 61.0),
    ("joint", None): (61.0, 62.0),
    ("jtln_annealed", "wordnet (wup)"): (64.0, 65.0),
    ("jtln_annealed", "centroid (euclidean)"): (66.0, 64.0),  # better by test, so that choosing by test would be seen
    ("jtln_annealed", "uniform"): (64.05, 70.0),
    ("jtln_annealed", "permuted wordnet (wup)"): (58.0, 60.0),
}
BEATS_UNIFORM, BEATS_PERMUTED = "an informative cost beats a uniform one", "the cost beats its permuted columns"
WEIGHTS = {"jtln": (0.1, 0.0), "jtln_annealed": (1.0, 0.3)}  # method -> lambda_ot, lambda_label


def result(
    method: str,
    cost: str | None,
    seed: int,
    test: float,
    val: float,
    shots: int | None = 1,
    head: str | None = None,
    weights: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """As a run writes it; ``head`` and ``weights`` are by default the method's."""
    overrides = [f"method={method}", *([f"cost={cost.split()[0]}"] if cost else [])]
    lambda_ot, lambda_label = weights or WEIGHTS.get(method, (0.0, 0.0))
    head = head or ("discriminant" if method == "jtln_annealed" else "linear")
    figures = {"accuracy": test / 100, "mean_class_accuracy": test / 200, "macro_f1": 0.5, "ece": 0.1, "n": 1000}
    return {
        "method": method,
        "head": head,
        "dataset": "toys",
        "cost": cost,
        "transport": {"epsilon": 0.1, "lambda_ot": lambda_ot, "lambda_label": lambda_label} if cost else None,
        "shots": shots,
        "seed": seed,
        "overrides": [*overrides, f"dataset.shots={shots}", f"seed={seed}"],
        "command": "python train.py",
        "settings": {"run": f"{method}{head}{cost}{shots}{seed}", "row": f"{method}{head}{cost}"},
        "git_commit": "abc",
        "hardware": "cpu, 1 threads",
        "target": {"test": figures, "val": {**figures, "accuracy": val / 100}},
        "seconds": 10.0,
        "seconds_in_all": 12.0,
    }


def made_runs(seeds: int = 8, shots: tuple[int, ...] = (1, 5)) -> list[Run]:
    return [
        Run(
            None,
            result(method, cost, seed, test + NOISE[seed] + OWN[(seed + row) % 8] + count, val + NOISE[seed], count),
            Path("nowhere"),
        )
        for row, ((method, cost), (test, val)) in enumerate(MEANS.items())
        for count in shots
        for seed in range(seeds)
    ]


@pytest.fixture
def evidence() -> Evidence:
    return gather(made_runs())


@pytest.fixture
def toys(evidence: Evidence) -> DatasetEvidence:
    (only,) = evidence.datasets
    return only


def test_rows_are_named_after_method_head_and_cost(toys: DatasetEvidence) -> None:
    costs = ["wordnet", "centroid", "uniform", "permuted wordnet"]
    assert [row.name for row in toys.rows] == ["consecutive", "joint", *(f"{OURS} ({cost})" for cost in costs)]
    assert {(row.method, row.head) for row in toys.rows[2:]} == {("jtln_annealed", "discriminant")}
    assert toys.labels == ("1 shot", "5 shots")
    assert [row.name for row in toys.rows if row.is_candidate] == [f"{OURS} (wordnet)", f"{OURS} (centroid)"]
    assert [row.control for row in toys.rows[-2:]] == ["uniform", "permuted"]


def test_a_candidate_has_a_transport_term_under_an_informative_cost() -> None:
    """Whatever its method is called, and whatever head reads the cost."""
    wanted = {
        ("jtln", "wordnet (wup)", "linear", None): True,
        ("mine", "taxonomy", "cosine", (0.5, 0.0)): True,
        ("mine", "taxonomy", "linear", (0.0, 0.3)): True,
        ("mine", "uniform", "linear", (0.5, 0.3)): False,
        ("mine", "permuted taxonomy", "linear", (0.5, 0.3)): False,
        ("consecutive", "wordnet (wup)", "discriminant", None): False,
        ("jtln", "wordnet (wup)", "discriminant", (0.0, 0.0)): False,
    }
    runs = [
        Run(str(index), result(method, cost, 0, 50, 50, head=head, weights=weights), Path())
        for index, (method, cost, head, weights) in enumerate(wanted)
    ]
    (only,) = gather(runs).datasets
    assert [row.is_candidate for row in only.rows] == list(wanted.values())
    assert [row.transports for row in only.rows] == [True] * 5 + [False] * 2


def test_a_baselines_name_stands_for_its_linear_head() -> None:
    """The same objective with another head is a row like any other, unless it is named itself."""
    extra = [
        Run(name, result("joint", "wordnet (wup)", seed, 62 + OWN[seed], 60, head=head), Path())
        for name, head in (("joint_discriminant", "discriminant"), ("joint_cosine", "cosine"))
        for seed in range(8)
    ]
    runs = [*made_runs(shots=(1,)), *extra]
    baselines = {"consecutive", "joint"}

    def others(*against: str) -> set[str]:
        (only,) = gather(runs, against).datasets
        pairs = ((each.row, each.other) for each in (*only.comparisons, *only.claims))
        return {other for row, other in pairs if row == f"{OURS} (centroid)" and not other.startswith(OURS)}

    assert others(*baselines) == baselines
    assert others("joint", "joint_cosine") == {"joint", "joint_cosine"}
    runs = extra  # none of the method has the linear head
    assert {each.other for each in gather(runs, ["joint"]).datasets[0].comparisons} == {"joint_discriminant"}


def test_the_time_of_a_run_leaves_out_the_trunk_that_it_trained_for_all_rows() -> None:
    runs = made_runs(seeds=3)
    for run in runs:
        first = run.result["method"] == "consecutive" and run.result["shots"] == 1
        run.result["trunk"] = {"pretrained": {"cached": not first}}
        run.result["seconds_in_all"] = 800.0 if first else 12.0 + run.result["seed"]
    (toys,) = gather(runs).datasets
    assert {row.seconds for row in toys.rows} == {13.0}
    assert {labels: cell.seconds for labels, cell in toys.rows[0].cells.items()} == {"1 shot": 800.0, "5 shots": 13.0}


def test_the_cost_is_chosen_by_validation_and_never_by_test(toys: DatasetEvidence) -> None:
    assert dict(toys.chosen) == dict.fromkeys(("1 shot", "5 shots"), f"{OURS} (wordnet)")


def test_claims_against_scipy(toys: DatasetEvidence) -> None:
    """One family: both numbers of labels."""
    others = ["consecutive", "joint", f"{OURS} (uniform)", f"{OURS} (permuted wordnet)"]
    assert [(claim.labels, claim.other) for claim in toys.claims] == [(n, o) for n in toys.labels for o in others]
    p_values = []
    for claim in toys.claims:
        ours, theirs = (toys.row(name).cells[claim.labels].test for name in (f"{OURS} (wordnet)", claim.other))
        reference = stats.ttest_rel([ours[s] for s in range(8)], [theirs[s] for s in range(8)])
        p_values.append(reference.pvalue)
        assert claim.difference.p == pytest.approx(reference.pvalue)
    assert [claim.p_holm for claim in toys.claims] == pytest.approx(holm(p_values))
    assert {(claim.family, claim.bootstrap) for claim in toys.claims} == {(8, False)}


def with_predictions(runs: list[Run], folder: Path, images: int = 40) -> list[Run]:
    """The runs in folders with stored predictions, the accuracies being those of the predictions."""
    made = []
    for index, run in enumerate(runs):
        place = folder / str(index)
        place.mkdir()
        draw = np.random.default_rng(index)
        label = (np.arange(images) % 4).astype(np.int32)
        wrong = draw.permutation(images)[: round(images * (1 - run.result["target"]["test"]["accuracy"]))]
        predicted = label.copy()
        predicted[wrong] = (label[wrong] + 1) % 4
        ones = np.ones(images, np.float32)
        write_predictions(Predictions(label, predicted, ones, ones), place)
        figures = {**run.result["target"]["test"], "accuracy": float((label == predicted).mean())}
        target = {"test": figures, "val": run.result["target"]["val"]}
        made.append(run._replace(folder=place, result={**run.result, "target": target}))
    return made


def test_stored_predictions_make_intervals_over_seeds_and_images(tmp_path: Path) -> None:
    (toys,) = gather(with_predictions(made_runs(shots=(1,)), tmp_path)).datasets
    for claim in toys.claims:
        ours, theirs = (toys.row(name).cells["1 shot"] for name in (claim.row, claim.other))
        assert claim.bootstrap
        assert claim.difference.mean == pytest.approx(np.mean([ours.test[s] - theirs.test[s] for s in range(8)]))
        over_seeds = stats.ttest_rel([ours.test[s] for s in range(8)], [theirs.test[s] for s in range(8)])
        low, high = over_seeds.confidence_interval()
        assert claim.difference.high - claim.difference.low > 0.7 * (high - low)
    assert "bootstrap over seeds and test images" in correction(toys.claims)


def test_without_validation_images_every_informative_cost_is_claimed() -> None:
    runs = [run._replace(result={**run.result, "target": {**run.result["target"], "val": None}}) for run in made_runs()]
    (toys,) = gather(runs).datasets
    assert toys.chosen == {}
    assert {claim.row for claim in toys.claims} >= {f"{OURS} (wordnet)", f"{OURS} (centroid)"}


def test_a_prior_under_an_informative_cost_is_a_candidate() -> None:
    made = result("linear_probe", "wordnet (path)", 0, 50, 50, head="logistic", weights=(0.0, 0.0))
    (only,) = gather(
        [Run("a", {**made, "prior": {"alpha": 0.5}}, Path()), Run("b", {**made, "seed": 1}, Path())]
    ).datasets
    assert [row.is_candidate for row in only.rows] == [True, False]


def test_sentences_say_what_is_significant_and_what_is_not(toys: DatasetEvidence) -> None:
    told = "\n".join(summary(toys))
    assert "Over consecutive: a significant gain at 1 shot and 5 shots (+4.0, +4.0)." in told
    assert f"Over {OURS} (uniform): no significant gain at 1 shot and 5 shots" in told
    assert f"not significant that {BEATS_UNIFORM}" in told
    assert f"a significant gain at 1 shot and 5 shots (+6.0, +6.0): {BEATS_PERMUTED}." in told
    claim = toys.claims[0]
    low, high = claim.difference.low, claim.difference.high
    assert details(toys)[0] == (
        f"{OURS} (wordnet) over consecutive at 1 shot: +4.0 [{low:.1f}, {high:.1f}], p_Holm < 0.001: a significant gain"
    )
    assert "of the table (8)" in correction(toys.claims)


def test_every_row_is_compared_with_the_baselines_and_costs_with_their_controls(toys: DatasetEvidence) -> None:
    pairs = {(each.row, each.other) for each in toys.comparisons if each.labels == "5 shots"}
    rows = [row.name for row in toys.rows]
    wanted = {(row, other) for other in ("consecutive", "joint") for row in rows[1:] if row != other}
    wanted |= {(row, other) for row in rows[2:4] for other in rows[4:]}
    claimed = {(each.row, each.other) for each in toys.claims if each.labels == "5 shots"}
    assert pairs == wanted - claimed
    both = [frozenset((each.row, each.other)) for each in (*toys.claims, *toys.comparisons) if each.labels == "1 shot"]
    assert len(set(both)) == len(both)  # no pair is tested twice


@pytest.mark.parametrize(
    ("method", "head", "name"),
    [
        ("consecutive", "discriminant", "consecutive + discriminant (wordnet)"),
        ("jtln", "linear", "jtln (wordnet)"),
        ("jtln_annealed", "linear", "jtln_annealed (wordnet)"),
    ],
)
def test_a_method_is_not_controlled_by_another_ones_permuted_cost(method: str, head: str, name: str) -> None:
    """Nor a head by another one's."""
    others = [
        Run(None, result(method, "wordnet (wup)", seed, 62.0 + OWN[seed], 63.0, head=head), Path("nowhere"))
        for seed in range(8)
    ]
    (only,) = gather([*made_runs(shots=(1,)), *others]).datasets
    assert {claim.row for claim in only.claims} == {f"{OURS} (wordnet)"}
    assert name in {claim.other for claim in only.claims}


def test_a_permuted_cost_is_compared_with_the_same_cost_alone() -> None:
    """What validation chose may be another cost than the one that was permuted."""
    runs = [run for run in made_runs(shots=(1,)) if run.result["cost"] != "wordnet (wup)"]
    (only,) = gather(runs).datasets
    assert only.chosen == {"1 shot": f"{OURS} (centroid)"}
    told = "\n".join((*summary(only), *details(only)))
    assert f"Over {OURS} (permuted wordnet): a significant gain" in told
    assert BEATS_PERMUTED not in told
    path = made_runs(shots=(1,))
    for run in path:
        if run.result["cost"] == "wordnet (wup)":
            run.result["cost"] = "wordnet (path)"
    assert BEATS_PERMUTED not in "\n".join(summary(gather(path).datasets[0]))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"method": "jtln", "head": "linear"}, "jtln (uniform)"),
        ({"head": "cosine"}, "jtln_annealed + cosine (uniform)"),
    ],
)
def test_a_uniform_cost_in_another_method_or_head_is_no_control(change: dict[str, str], name: str) -> None:
    plain = [
        run._replace(result={**run.result, **change}) if run.result["cost"] == "uniform" else run
        for run in made_runs(shots=(1,))
    ]
    (only,) = gather(plain, against=("consecutive",)).datasets
    assert name in {claim.other for claim in only.claims}
    assert not any(each.other == name for each in only.comparisons)
    told = "\n".join((*summary(only), *details(only)))
    assert f"Over {name}: " in told
    assert BEATS_UNIFORM not in told
    assert f"not significant that {BEATS_UNIFORM}" in "\n".join(summary(gather(made_runs()).datasets[0]))


def test_the_method_without_a_cost_is_no_candidate() -> None:
    runs = [Run(None, result("jtln_annealed", None, seed, 60.0 + seed, 60.0), Path("nowhere")) for seed in range(3)]
    assert not any(row.is_candidate for row in gather([*runs, *made_runs(3)]).datasets[0].rows if row.cost is None)


def test_a_loss_and_an_interval_that_the_correction_undoes() -> None:
    runs = made_runs(shots=(1,))
    (worse,) = gather(runs, against=(f"{OURS} (centroid)",)).datasets
    by_row = {each.row: each for each in worse.comparisons if each.other == f"{OURS} (centroid)"}
    assert by_row["consecutive"].verdict == "a significant loss"
    three = gather(made_runs(seeds=3, shots=(1,))).datasets[0]
    doubtful = [each for each in three.comparisons if each.difference.low > 0 and each.p_holm > 0.05]
    assert all("no significant gain: the interval excludes zero" in each.verdict for each in doubtful)


def test_pairs_are_the_seeds_that_both_have() -> None:
    runs = [
        run for run in made_runs(shots=(1,)) if not (run.result["method"] == "consecutive" and run.result["seed"] > 2)
    ]
    (toys,) = gather(runs).datasets
    assert {each.difference.n for each in toys.claims if each.other == "consecutive"} == {3}
    assert {each.difference.n for each in toys.claims if each.other == "joint"} == {8}


def test_one_seed_and_no_claim() -> None:
    (one,) = gather(made_runs(seeds=1, shots=(1,))).datasets
    assert all(math.isnan(each.p_holm) and "one seed" in each.verdict for each in one.claims)
    (none,) = gather([run for run in made_runs() if run.result["method"] != "jtln_annealed"]).datasets
    assert "cannot be judged" in summary(none)[0]


def test_notes() -> None:
    runs = made_runs(seeds=2)
    assert "has seen test images" not in " ".join(gather(runs).notes)
    runs[0].result.update(git_commit="def", synthetic_images=True, seeds_differ_in_test=True)
    repeated = Run(None, runs[1].result, Path("elsewhere"))
    notes = " ".join(gather([*runs, repeated]).notes)
    assert "nothing can be concluded" in notes
    assert "In toys one seed tests what another validates on" in notes
    assert "2 commits of the code: abc, def" in notes
    assert "Only 2 seeds" in notes
    assert "1 runs repeat others" in notes


def test_rows_with_one_method_are_told_apart_by_their_overrides() -> None:
    runs = []
    for epsilon in ("0.1", "0.3"):
        for seed in range(2):
            each = result("jtln", "uniform", seed, 50.0 + seed, 50.0)
            each["overrides"].append(f"transport.epsilon={epsilon}")
            each["settings"]["row"] = epsilon
            runs.append(Run(None, each, Path()))
    (toys,) = gather(runs).datasets
    assert [row.name for row in toys.rows] == [f"jtln (uniform) transport.epsilon={e}" for e in ("0.1", "0.3")]
    assert toys.rows[0].command == (
        "python train.py -m method=jtln cost=uniform transport.epsilon=0.1 dataset.shots=1 seed=0,1"
    )


def test_rows_without_overrides_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    """The same command, by two versions of the program with other defaults."""
    runs = []
    for index, rate in enumerate((0.1, 1.0)):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "config.yaml").write_text(
            f"seed: {index}\ntrunk_lr_factor: {rate}\nmethod:\n  name: joint\n", encoding="utf-8"
        )
        for seed in range(2):
            made = result("joint", None, seed, 50, 50)
            runs.append(Run(None, {**made, "settings": {"row": f"row {index}"}}, folder))
    (only,) = gather(runs).datasets
    assert [row.name for row in only.rows] == ["joint trunk_lr_factor=0.1", "joint trunk_lr_factor=1.0"]
    (tmp_path / "1" / "config.yaml").unlink()
    assert [row.name for row in gather(runs).datasets[0].rows][1] == "joint"


def test_rows_that_were_tested_on_other_images_are_not_compared() -> None:
    runs = made_runs(shots=(1,))
    other = [
        run._replace(
            result={**run.result, "overrides": [*run.result["overrides"], "dataset.split_seed=1", "dataset.root=there"]}
        )
        for run in runs
    ]
    first, second = gather([*runs, *other]).datasets
    assert (first.dataset, second.dataset) == ("toys", "toys (dataset.split_seed=1)")
    assert [row.name for row in first.rows] == [row.name for row in second.rows]
    assert len(first.claims) == len(second.claims) == 4
    (alone,) = gather(other).datasets
    assert alone.dataset == "toys"
    seen = [run.result["overrides"] + ["dataset.flip=false"] for run in runs]  # otherwise, but the same images
    mirrored = [r._replace(result={**r.result, "overrides": o}) for r, o in zip(runs, seen, strict=True)]
    assert len(gather([*runs, *mirrored]).datasets) == 1
    assert len(gather([run._replace(row=run.result["method"]) for run in (*runs, *other)]).datasets) == 1


def test_an_experiment_may_be_another_data_set(tmp_path: Path) -> None:
    def of_experiment(name: str, per_class: int) -> list[Run]:
        (tmp_path / name).mkdir(exist_ok=True)
        text = f"dataset: {{train_per_class: {per_class}, split_seed: 3}}\n"
        (tmp_path / name / "config.yaml").write_text(text, encoding="utf-8")
        given = [f"experiment={name}"]
        return [
            run._replace(result={**run.result, "overrides": given + run.result["overrides"]}, folder=tmp_path / name)
            for run in made_runs(shots=(1,))
        ]

    protocols = gather([*of_experiment("thirty", 30), *of_experiment("sixty", 60)]).datasets
    assert [each.dataset for each in protocols] == ["toys (experiment=thirty)", "toys (experiment=sixty)"]
    (same,) = gather([*of_experiment("fast", 30), *of_experiment("slow", 30)]).datasets  # as to the data
    assert same.dataset == "toys"


def test_a_command_for_numbers_of_labels_and_one_for_shares() -> None:
    runs = [Run("joint", result("joint", None, 0, 50, 50, shots), Path()) for shots in (1, 5)]
    rate = result("joint", None, 0, 50, 50, None) | {"rate": 0.5}
    rate["overrides"] = ["method=joint", "dataset.shots=null", "dataset.rate=0.5", "seed=0"]
    (row,) = gather([*runs, Run("joint", rate, Path())]).datasets[0].rows
    assert row.command == (
        "python train.py -m method=joint dataset.shots=1,5 seed=0 && "
        "python train.py method=joint dataset.shots=null dataset.rate=0.5 seed=0"
    )


def test_labels_in_words() -> None:
    assert labels_of({"shots": 1}) == "1 shot"
    assert labels_of({"shots": None, "rate": 0.15}) == "15 %"
    assert labels_of({"shots": None}) == "all"
    runs = [Run(None, result("joint", None, 0, 50, 50, shots), Path()) for shots in (None, 20, 1)]
    rate = result("joint", None, 0, 50, 50, None) | {"rate": 0.5}
    assert gather([*runs, Run(None, rate, Path())]).datasets[0].labels == ("1 shot", "20 shots", "50 %", "all")


def test_another_metric_and_mistakes() -> None:
    (toys,) = gather(made_runs(), metric="mean_class_accuracy").datasets
    assert toys.row("joint").cells["1 shot"].interval.mean == pytest.approx(31.0)
    with pytest.raises(UserError, match="one of accuracy, mean_class_accuracy, macro_f1, but got f1"):
        gather(made_runs(), metric="f1")
    with pytest.raises(UserError, match="no finished runs"):
        gather([])


class Page(HTMLParser):
    """The cells of a page's tables, its links to elsewhere, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells, self.outside, self.open = list[str](), list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.outside += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_files(evidence: Evidence, tmp_path: Path) -> None:
    path = write_evidence(evidence, tmp_path / "report", "Study <few>", "python train.py -m study=few_shot")
    folder = tmp_path / "report"
    names = {"accuracy_toys.png", "report.html", "report.md", "rows.csv", "comparisons.csv", "runs.csv", "archive"}
    assert {each.name for each in folder.iterdir()} == names
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.outside
    assert page.open == []
    interval = evidence.datasets[0].row("joint").cells["1 shot"].interval
    assert f"{interval.mean:.1f} ± {interval.half:.1f}" in page.cells
    assert "Study &lt;few&gt;" in path.read_text(encoding="utf-8")
    assert "| joint |" in (folder / "report.md").read_text(encoding="utf-8")
    with open(folder / "rows.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert float(rows[0]["low"]) < float(rows[0]["test"]) < float(rows[0]["high"])
    with open(folder / "comparisons.csv", newline="", encoding="utf-8") as file:
        compared = list(csv.DictReader(file))
    (datasets,) = evidence.datasets
    assert len(compared) == len(datasets.claims) + len(datasets.comparisons)
    with open(folder / "runs.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(evidence.runs)


def test_every_figure_on_the_page_is_one_of_the_evidence(evidence: Evidence, tmp_path: Path) -> None:
    """Cell by cell, in the order of the tables."""
    page = Page(write_evidence(evidence, tmp_path, "all").read_text(encoding="utf-8"))
    (each,) = evidence.datasets
    expected = []
    for row in each.rows:
        for labels in each.labels:
            values = list(row.cells[labels].test.values())
            low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
            expected.append(f"{np.mean(values):.1f} ± {(high - low) / 2:.1f}")
        expected.append(f"{row.seconds:.0f} s")
    for one in (*each.claims, *each.comparisons):
        mean, low, high, _, p = one.difference
        texts = ["< 0.001" if value < 0.001 else f"{value:.3f}" for value in (p, one.p_holm)]
        mean, low, high = (
            Decimal(repr(round(end, 9))).quantize(Decimal("0.1"), ROUND_HALF_UP) + 0 for end in (mean, low, high)
        )
        expected += [one.row, one.other, f"{mean:+}", f"[{low}, {high}]", *texts, one.verdict]
    assert page.cells == expected


def test_one_number_of_labels_is_drawn_too(tmp_path: Path) -> None:
    write_evidence(gather(made_runs(seeds=1, shots=(1,))), tmp_path, "one")
    assert (tmp_path / "accuracy_toys.png").stat().st_size > 10_000


def test_results_are_found_at_any_depth_but_not_in_trials(tmp_path: Path) -> None:
    good = result("joint", None, 0, 50, 50)
    for where in ("a", "b/c", "trials/d", "half", "other"):
        (tmp_path / where).mkdir(parents=True)
        (tmp_path / where / "result.json").write_text(json.dumps(good), encoding="utf-8")
    (tmp_path / "half" / "result.json").write_text('{"method": ', encoding="utf-8")
    (tmp_path / "nan").mkdir()
    (tmp_path / "nan" / "result.json").write_text(json.dumps(result("joint", None, 0, math.nan, 50)), encoding="utf-8")
    (tmp_path / "other" / "result.json").write_text("[1]", encoding="utf-8")
    assert [path.parent.name for path, _ in read_results(tmp_path)] == ["a", "c"]
    assert [path.parent.name for path, _ in read_results(tmp_path / "trials")] == ["d"]


def test_rows_below_the_target_alone_are_named() -> None:
    """By a paired test against SciPy's, corrected over the rows; a row above it is not named."""
    accuracies = {"target_only": 62.0, "consecutive": 60.0, "joint": 63.0}
    values = {
        name: [mean + NOISE[seed] + OWN[(seed + place) % 8] for seed in range(8)]
        for place, (name, mean) in enumerate(accuracies.items())
    }
    runs = [
        Run(None, result(name, None, seed, value, value), Path("nowhere"))
        for name, each in values.items()
        for seed, value in enumerate(each)
    ]
    (note,) = [note for note in gather(runs).notes if note.startswith("Negative transfer")]
    assert "consecutive over target_only at 1 shot: -" in note
    p = [stats.ttest_rel(values[name], values["target_only"]).pvalue for name in ("consecutive", "joint")]
    assert holm(p)[0] < 0.05
    worse = gather([run for run in runs if run.result["method"] != "consecutive"])
    assert not any(note.startswith("Negative transfer") for note in worse.notes)
