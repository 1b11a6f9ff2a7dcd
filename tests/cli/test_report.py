"""``jtln report`` on run folders, and studies from the command line on synthetic images."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from jtln.cli.overrides import is_study
from jtln.cli.report import main as report
from jtln.cli.study import FOLDER, _combinations
from jtln.cli.train import main
from jtln.study.launch import Launch
from jtln.study.study import Study, of_other_code

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

QUICK = ["debug=smoke", "trunk.width=0.05", "trainer.progress_bar=false", "study.workers=1"]


launches: list[Launch] = []  # of the studies that are planned


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Study]:
    """The studies that the command line plans: none is run."""
    studies: list[Study] = []
    launches.clear()
    monkeypatch.setattr(
        "jtln.study.study.run_study", lambda study, launch: studies.append(study) or launches.append(launch) or True
    )
    return studies


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/result.json"))]


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
def test_a_study_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["-m", "study=quick", *QUICK, "study.only=[consecutive,annealed_uniform]", "study.shots=1"]
    assert main([*call, "study.seeds=1"]) == 0
    told = capsys.readouterr().out
    assert "rows x numbers of labels x seeds: 2 x 1 x 1 = 2 runs, of which 0 are done" in told
    assert "Synthetic images were used" in told
    folder = tmp_path / "studies" / "quick" / "fashion_debug-smoke_trunk.width-0.05"
    assert {"report.html", "report.md", "rows.csv"} <= {path.name for path in folder.iterdir()}
    first = results(tmp_path / "studies" / "runs")
    facts = [(each["method"], each["head"], each["shots"], each["seed"]) for each in first]
    assert facts == [("jtln_annealed", "discriminant", 1, 0), ("consecutive", "linear", 1, 0)]
    assert all(each["settings"].keys() == {"run", "row"} for each in first)
    written = {path.name for path in (tmp_path / "studies" / "runs").glob("*/*")}
    assert {"result.json", "log.txt", "metrics.csv"} <= written
    assert not {"report.html", "plots"} & written

    # Another order and one seed more: only what is new is run, and what an older release ran is named.
    old = next((tmp_path / "studies" / "runs").glob("annealed_uniform_*/result.json"))
    old.write_text(json.dumps(first[0] | {"versions": first[0]["versions"] | {"jtln": "0.0.1"}}), encoding="utf-8")
    assert main(["-m", "study.seeds=[1,0]", *reversed(call[1:])]) == 0
    told = capsys.readouterr().out
    assert "4 runs, of which 2 are done" in told
    assert re.search(r"finished runs are of other code than this, or may be \(.*1 of version 0\.0\.1\)", told)
    assert len(results(tmp_path / "studies" / "runs")) == 4
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    assert report(["studies", "--output", "here"]) == 0
    assert "jtln_annealed + discriminant (uniform)" in capsys.readouterr().out
    assert (tmp_path / "here" / "report.html").is_file()


def test_finished_runs_of_other_code_are_named() -> None:
    runs = [{"git_commit": each, "versions": {"jtln": "1.0"}} for each in ("a" * 40, "b" * 40, "b" * 40, None)]
    dirty = {"git_commit": "b" * 40 + "-dirty", "versions": {"jtln": "1.0"}}
    assert of_other_code([*runs, dirty], "a" * 40, "1.0") == (
        "finished runs are of other code than this, or may be (2 of commit bbbbbbb, 1 of commit bbbbbbb-dirty)"
    )
    assert of_other_code([dirty], "b" * 40 + "-dirty", "1.0") == of_other_code([dirty], "b" * 40, "1.0") is not None
    assert of_other_code([dirty], None, "1.0") is None  # an installed package knows its release alone
    assert of_other_code([{}, *runs], None, "1.1") == (
        "finished runs are of other code than this, or may be (4 of version 1.0)"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
def test_a_draw_of_the_categories_for_each_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = [*QUICK, "dataset=pictograms", "dataset.split_seed=${seed}", "study.only=[consecutive]", "study.shots=1"]
    assert main(["-m", "study=quick", *call, "study.seeds=2"]) == 0
    runs = tmp_path / "studies" / "runs"
    assert [each["seed"] for each in results(runs)] == [0, 1]
    assert len({each["settings"]["row"] for each in results(runs)}) == 1
    first, second = [path.read_text() for path in sorted(runs.glob("*/split.csv"))]
    classes = [{line["class"] for line in csv.DictReader(text.splitlines())} for text in (first, second)]
    assert classes[0] != classes[1]
    capsys.readouterr()
    assert report([str(runs), "--output", "here"]) == 0
    told = (tmp_path / "here" / "report.md").read_text()
    assert told.count("| consecutive |") == told.count("### ") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
def test_a_row_that_fails_and_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budget = ["trunk.width=0.05", "study.workers=1", "pretrain=none", "epochs=1", "steps_per_epoch=1"]
    call = ["study=quick", *budget, "study.only=[consecutive]", "study.shots=[1,100000]", "study.seeds=1"]
    assert main(["-m", *call, "dataset.validation=2", "study.tune.trials=1", "study.tune.shots=1"]) == 1
    told = capsys.readouterr().out
    assert "failed: consecutive, 100000 shots, seed 0: " in told
    assert "set dataset.shots to at most" in told
    (folder,) = (tmp_path / "studies" / "quick").iterdir()
    assert folder.name.startswith("fashion_dataset.validation-2_epochs-1_pretrain-none_")
    tuned = json.loads((folder / "tuned.json").read_text(encoding="utf-8"))
    assert tuned["rows"]["consecutive"]["overrides"] == ["optimizer.lr=0.001", "trunk_lr_factor=0.1"]
    assert sorted(each["seed"] for each in results(tmp_path / "studies" / "trials")) == [1000, 1001]
    (made,) = results(tmp_path / "studies" / "runs")
    assert "optimizer.lr=0.001" in made["overrides"]

    # Trials are taken up again, too, and what an older release made of them is named.
    old = next((tmp_path / "studies" / "trials").glob("*1000_*/result.json"))
    trial = json.loads(old.read_text(encoding="utf-8"))
    old.write_text(json.dumps(trial | {"versions": trial["versions"] | {"jtln": "0.0.1"}}), encoding="utf-8")
    call = [*call[:-2], "study.shots=1", "study.seeds=1", "dataset.validation=2"]
    assert main(["-m", *call, "study.tune.trials=1", "study.tune.shots=1"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"note: of the trials, .*\(.*1 of version 0\.0\.1\); .* out of studies/trials\n", told)
    assert len(results(tmp_path / "studies" / "trials")) == 2


MISTAKES = {
    "-m study=quik": "Did you mean 'quick'",
    "study=quick": "python train.py -m study=quick",
    "-m study=quick seed=3": "study.seeds=[...]",
    "-m study=quick method=joint": "study.only=[...]",
    "-m study=quick study.only=[jtln]": "unknown row in study.only 'jtln'",
    "-m study=quick study.seeds=[1000] study.tune.trials=2 study.only=[joint]": "other seeds",
    "-m study=quick study.tune.trials=2 study.tune.margin=-1 ONE": "a number >= 0 for study.tune.margin, but got -1",
    "-m study=quick dataset=pictograms study.shots=1 study.tune.trials=2 ONE": "tuning would have seen the study's",
    "-m study=quick dataset.split_seed=${seed} study.tune.trials=2 ONE": "tuning would have seen the study's",
    "-m study=quick dataset=pictograms ONE": "5 shots: expected 1 to 3 shots",
    "-m study=quick dataset=pictograms study.shots=[4] ONE": "set study.shots to at most 3",
    "-m study=quick dataset=pictograms study.shots=null study.rates=[0.5] ONE": "the key dataset.rate, but dataset=",
    "-m study=quick epochs=0 ONE": "expected a whole number >= 1 for epochs",
    "-m study=quick optimizer.lr=-1 ONE": "Invalid learning rate",
    "-m study=quick transport.epsilon=-1 ONE": "consecutive: transport: expected a finite number epsilon > 0",
    "-m study=quick transport.epsilon=much ONE": "expected a number for transport.epsilon",
    "-m study=few_shot cost.metric=path study.only=[annealed_centroid]": "annealed_centroid: cost: unknown",
    "-m study=few_shot head.shrinkage=2 study.only=[discriminant]": "discriminant: head: expected shrinkage in",
    "-m study=quick study.against=[conscutive] ONE": "Did you mean 'consecutive'",
    "-m study=quick study.only=[]": "at least one in study.only",
    "-m study=quick study.seeds=0": "at least one in study.seeds",
    "-m study=quick study.folder=null": "study.folder",
    "-m study=quick +study.tune.space.annealed.a=[1,2]": "unknown method in study.tune.space 'annealed'",
    "-m study=quick study.tune.trials=1 +study.tune.space.all.optimizer.lrr=[1,2] ONE": "single value",
    "-m study=quick study.overrides=['cost.metrc=path'] ONE": "has a cost with the key cost.metrc",
    "-m study=quick study.overrides=['seed=4']": "study.seeds=[...]",
    "-m study=quick method.lambda_source=0.5 ONE": "the key method.lambda_source",
    "-m study=quick head.shrinkage=0.5 ONE": "none of the rows consecutive has a head with the key head.shrinkage",
    "-m study.seeds=3": "is for a study",
    "-m study=quick study.workers=-1 ONE": "study.workers",
    "-m study=quick study.shots=[0]": ">= 1 for study.shots",
    "-m study=quick study.rates=[2]": "shares in (0, 1]",
    "-m study=quick dataset=fashn": "fashion",
    "-m study=quick optimizer.foo=1": "foo",
    "-m study=quick study.only=[annealed_uniform] cost.metric=path": "none of the rows annealed_uniform has a cost",
    "-m study=quick study.seeds=[4294967296]": "from 0 to 4294967295 in study.seeds, but got 4294967296",
    "-m study=few_shot pretrain=none study.only=[joint,annealed_posterior]": "annealed_posterior: expected a source",
}
ONE = "study.only=[consecutive]"  # the mistake is the same in every row
AT_ONCE = {  # the others compose rows, which takes seconds
    "study=quick",
    "-m study=quick seed=3",
    "-m study.seeds=3",
}


@pytest.mark.parametrize("call", [pytest.param(c, marks=() if c in AT_ONCE else pytest.mark.slow) for c in MISTAKES])
def test_a_mistake_ends_in_one_line(call: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(call.replace("ONE", ONE).split()) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("error: ")
    assert MISTAKES[call] in told[0]
    assert not (tmp_path / "studies" / "runs").exists()


def test_every_study_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Hydra is told: the study's file, its dataset, and what makes other runs of it."""

    def folders(*overrides: str) -> list[str]:
        told: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr("jtln.cli.study.run_hydra", lambda arguments, job: told.append(arguments[0]) or 0)
            assert main(["-m", "study=quick", "study.shots=[1]", *overrides]) == 0
        assert all(each.startswith('hydra.run.dir="') and each.endswith('"') for each in told)
        return [each[len('hydra.run.dir="') : -1] for each in told]

    assert folders() == folders("study.seeds=1", "logger=csv", "trainer.devices=1") == [FOLDER]
    assert folders("study.overrides=['epochs=3']") == [f"{FOLDER}_study.overrides-epochs-3-"]
    assert folders("trainer.precision=bf16-mixed") == [f"{FOLDER}_trainer.precision-bf16-mixed"]
    assert folders("trainer.precision=32", "epochs=3") == folders("epochs=3", "trainer.precision=32")
    assert folders("trainer.precision=32", "epochs=3") == [f"{FOLDER}_epochs-3_trainer.precision-32"]
    assert folders("dataset.name='Études'") == [f"{FOLDER}_dataset.name-Études-"]
    assert folders("dataset=pictograms", "dataset.split_seed=1") == [f"{FOLDER}_dataset.split_seed-1"]
    assert folders("hydra.sweep.dir='my dir'") == folders("hydra.run.dir='my dir'") == ["my dir"]
    named = folders("hydra.sweep.dir='my dir'", "dataset=fashion,pictograms", "method.lambda_ot=1")
    assert named == ["my dir_dataset-fashion", "my dir_dataset-pictograms"]
    swept = folders("transport.epsilon=0.1,0.2", "dataset=fashion,pictograms")  # the folder's name has the dataset
    assert swept == [f"{FOLDER}_transport.epsilon-{epsilon}" for epsilon in (0.1, 0.1, 0.2, 0.2)]


@pytest.mark.slow
def test_several_studies_have_a_folder_each(
    planned: list[Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home of mine"))
    call = ["-m", "study=quick", ONE, "study.shots=1"]

    def folders(*overrides: str) -> list[str]:
        planned.clear()
        assert main([*call, *overrides]) == 0
        return [str(each.folder.relative_to(tmp_path)) for each in planned]

    assert folders("dataset=fashion,pictograms") == ["studies/quick/fashion", "studies/quick/pictograms"]
    several = folders("transport.epsilon=0.1,0.2", "dataset.name='Études'", "study.folder='~/all'")
    names = [f"fashion_dataset.name-Études-_transport.epsilon-{epsilon}" for epsilon in (0.1, 0.2)]
    assert several == [f"home of mine/all/quick/{name}" for name in names]
    assert planned[0].runs == tmp_path / "home of mine" / "all" / "runs"
    assert folders("hydra.sweep.dir='my dir'") == ["my dir"]


@pytest.mark.slow
def test_every_study_can_be_planned(planned: list[Study]) -> None:
    assert (
        main(["-m", "study=few_shot,controls,quick", "dataset=fashion", "study.shots=1,2", "study.seeds=range(3)"]) == 0
    )
    assert [study.name for study in planned] == ["few_shot", "controls", "quick"]
    few_shot = planned[0]
    methods = [
        "target_only",
        "linear_probe",
        "consecutive",
        "joint",
        "l2sp",
        "delta",
        "bss",
        "co_tuning",
        "co_tuning_source",
        "discriminant",
        "joint_discriminant",
        "jtln",
    ]
    costs = ["wordnet", "centroid", "posterior", "uniform", "permuted"]
    assert [row.name for row in few_shot.rows] == [*methods, *(f"annealed_{cost}" for cost in costs)]
    assert few_shot.seeds == (0, 1, 2)
    assert [labels.words for labels in few_shot.labels] == ["1 shot", "2 shots"]
    jobs = [row.job({}, study.labels[0], study.seeds[0], None) for study in planned for row in study.rows]
    assert len({job.settings for job in jobs}) == 17 + 10 - 8 + 4  # few_shot and controls share eight rows
    assert len({job.trunk for job in jobs if job.trunk}) == 2
    row = few_shot.rows[-1]
    every = [row.job({}, labels, seed, None) for labels in few_shot.labels for seed in few_shot.seeds]
    assert len({job.settings for job in every}) == 2 * 3
    assert len({job.trunk for job in every}) == 1
    assert all(row.space and None not in row.current.values() for row in few_shot.rows)


@pytest.mark.slow
def test_a_key_of_the_cost_or_the_head_is_for_the_rows_that_have_it(planned: list[Study]) -> None:
    names = ["joint", "joint_discriminant", *(f"annealed_{c}" for c in ("uniform", "centroid", "wordnet", "permuted"))]
    only = f"study.only=[{','.join(names)}]"
    assert main(["-m", "study=few_shot", only, "cost.unknown_names=error", "head.shrinkage=0.5"]) == 0
    rows = {row.name: row.job({}, planned[0].labels[0], 0, None).overrides for row in planned[0].rows}
    kept = ("unknown_names", "shrinkage")
    given = {name: [each for each in row if any(key in each for key in kept)] for name, row in rows.items()}
    assert given["joint"] == ["cost.unknown_names=error"]  # of the cost that stands there unused
    assert given["annealed_uniform"] == given["annealed_centroid"] == ["head.shrinkage=0.5"]
    assert (
        given["annealed_wordnet"] == given["joint_discriminant"] == ["cost.unknown_names=error", "head.shrinkage=0.5"]
    )
    assert given["annealed_permuted"] == ["cost.of.unknown_names=error", "head.shrinkage=0.5"]  # what it permutes


@pytest.mark.slow
def test_what_a_row_has_not_is_not_tuned(planned: list[Study]) -> None:
    """Nor is the row refused for it: what is fixed may be what a tuned key is in."""
    rows = "+study.rows.fixed=['method=co_tuning','method.penalty={weight: 1.0}']"
    assert main(["-m", "study=few_shot", rows, "study.only=[co_tuning,fixed]", "study.tune.trials=2"]) == 0
    spaces = {row.name: set(row.space) for row in planned[0].rows}
    assert spaces["co_tuning"] - spaces["fixed"] == {"method.penalty.weight"}
    assert planned[0].rows[1].config.method.penalty.weight == 1.0


@pytest.mark.slow
def test_a_key_that_only_some_rows_have(planned: list[Study]) -> None:
    """Of a cost or a method that is not the default one; a baseline that has no source term gets none."""
    keys = ["cost.momentum=0.5", "method.penalty.alpha=0.1", "method.lambda_source=0.5"]
    names = ["consecutive", "joint", "l2sp", "delta", "bss", "co_tuning_source", "jtln"]
    names += ["annealed_wordnet", "annealed_centroid"]
    assert main(["-m", "study=few_shot", f"study.only=[{','.join(names)}]", f"+{keys[0]}", *keys[1:]]) == 0
    takers: dict[str, list[str]] = {key: [] for key in keys}
    for row in planned[0].rows:
        for key in set(keys) & set(row.job({}, planned[0].labels[0], 0, None).overrides):
            takers[key].append(row.name)
    source = ["joint", "co_tuning_source", "jtln", "annealed_wordnet", "annealed_centroid"]
    assert takers == {keys[0]: ["annealed_centroid"], keys[1]: ["l2sp", "delta"], keys[2]: source}


@pytest.mark.slow
def test_the_runs_of_a_study_have_its_folders_name_as_their_wandb_group(planned: list[Study]) -> None:
    """What they log: test_wandb_logger.py."""

    def extra(*overrides: str) -> tuple[str, ...]:
        assert main(["-m", "study=quick", ONE, "study.shots=1", *overrides]) == 0
        return launches[-1].extra

    none = ("report=false",)
    assert extra() == extra("logger=wandb", "logger.wandb.group=mine") == none
    assert extra("logger=wandb", "epochs=3") == ("logger.wandb.group=quick-fashion_epochs-3", *none)
    group = "logger.wandb.group=quick-fashion_study.overrides-logger-wandb-"
    assert extra("study.overrides=['logger=wandb']") == (group, *none)
    csv, wandb = (study.rows[0].job({}, study.labels[0], 0, None) for study in planned[:2])
    assert csv.settings == wandb.settings  # a run that is finished counts, wherever it was logged


def test_configuration_of_a_study_can_be_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "study=quick", "--cfg", "job"]) == 0
    assert "annealed_uniform" in capsys.readouterr().out


def test_arguments() -> None:
    assert is_study(["-m", "study=few_shot"])
    assert not is_study(["study=none"])
    assert not is_study(["study.seeds=3"])
    combined = _combinations(["study=a,b", "study.shots=1,2", "dataset=x", "--config-dir", "c"])
    rest = ["study.shots=[1,2]", "dataset=x", "--config-dir", "c"]
    assert combined == [["study=a", *rest], ["study=b", *rest]]


def test_mistakes_of_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(tmp_path / "nothing")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert report([str(tmp_path)]) == 2
    assert "no result.json below" in capsys.readouterr().err
    assert report([]) == 2
    assert report(["--help"]) == 0
    assert "trials of a tuning" in capsys.readouterr().out


@pytest.mark.slow
def test_numbers_of_labels_take_the_place_of_an_experiments_share(planned: list[Study]) -> None:
    call = ["experiment=cub200", "study.only=[consecutive]", "study.rates=[0.3]"]
    assert main(["-m", "study=few_shot", *call, "study.shots=[1,5]"]) == 0
    assert [labels.words for labels in planned[0].labels] == ["1 shot", "5 shots", "30 %"]
    assert planned[0].labels[0].overrides == ("dataset.rate=null", "dataset.shots=1")


@pytest.mark.slow
def test_a_row_whose_cost_does_not_know_the_classes_is_named_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["dataset=aircraft", "study.only=[consecutive,annealed_wordnet]", "study.tune.trials=2"]
    call.append("cost.unknown_names=error")
    assert main(["-m", "study=few_shot", *call]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: annealed_wordnet: ")
    assert "Boeing 777-300: nothing is close" in told
    assert not (tmp_path / "studies" / "runs").exists()


@pytest.mark.slow
def test_a_row_may_have_classes_of_its_own(planned: list[Study]) -> None:
    """Its cost is asked for them, and not for those of the other rows, which WordNet does not know."""
    names = ["Boeing 707-320", "Boeing 727-200", "Boeing 777-300", "Boeing 717"]
    lines = [f"{name},{synset}" for name, synset in zip(names, ("airliner.n.01", "jet.n.01") * 2, strict=True)]
    Path("links.csv").write_text("\n".join(["class,synset", *lines]), encoding="utf-8")
    own = "'dataset.links=links.csv','dataset.target_classes=[{},{}]','dataset.source_classes=[{},{}]'".format(*names)
    rows = f"+study.rows.mine=['method=jtln_annealed','cost=wordnet',{own}]"
    assert main(["-m", "study=few_shot", "dataset=aircraft", rows, "study.only=[consecutive,mine]"]) == 0
    assert [row.name for row in planned[0].rows] == ["consecutive", "mine"]
