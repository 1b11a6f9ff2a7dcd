"""The command line, in this process: every configuration file runs, and what is kept of a run."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import jtln
from jtln.cli.overrides import config_dir
from jtln.cli.sweep import SweepTable
from jtln.cli.train import main

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

CONF = config_dir()
FILES_FOLDER = Path(__file__).parents[1] / "files"
FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
CHOICES = [name for name in FILES if name.count("/") == 1]  # group/file
WITHIN = [name for name in FILES if name.count("/") == 2 and not name.startswith("hydra/")]  # in a group of a group
QUICK = ["trunk.width=0.05", "trainer.progress_bar=false"]
PHOTOGRAPHS = ["aircraft", "caltech101", "caltech256", "cars", "cub200", "dtd", "flowers102", "food101", "imagenet"]
PHOTOGRAPHS += ["office31", "pets", "places365"]

# What a file needs that no test brings.
PACKAGES = {"logger/tensorboard": "tensorboard", "logger/mlflow": "mlflow"}

AT_ONCE = ("head/cosine", "method/linear_probe")  # the others are slow

# Of these the plots are drawn, which takes longer than such a run: few classes and many, the curves of a penalty.
DRAWN = ("dataset/caltech256", "method/jtln_annealed", "method/l2sp")

# Files that change nothing about the data run together with a data set.
BESIDE = ("callbacks", "logger", "optimizer", "pretrain", "schedule", "trainer")

# What a file needs beside debug=smoke: a folder that is not there, a machine that is not this one.
GLOBAL = "# @package _global_"  # a file that sets keys outside its group
NEEDS: dict[str, list[str]] = {
    **{f"dataset/{name}": ["dataset.image_size=32"] for name in PHOTOGRAPHS},  # only to be quick
    "cost/file": [f"cost.file={FILES_FOLDER / 'fashion_cost.csv'}"],
    "cost/taxonomy": [f"cost.file={FILES_FOLDER / 'fashion_paths.csv'}"],
    "dataset/folder": [f"dataset.{side}.root={FILES_FOLDER / f'own_{side}.csv'}" for side in ("source", "target")]
    + ["dataset.image_size=32"],
    "dataset/fashion_full": ["dataset.root=/nowhere", "dataset.download=false"],
    "trunk/torchvision": ["pretrain=none"],  # only to be quick
    "trunk/timm": ["pretrain=none", "trunk.name=resnet10t", "dataset.image_size=32"],
    "trunk/efficientnet_lite0": ["pretrain=none", "dataset.image_size=32"],
    "trunk/module": ["pretrain=none", "trunk.path=torch.nn.Flatten"],
    "trainer/ddp": ["trainer.accelerator=cpu", "trainer.devices=1"],  # with more of them: test_ddp.py
}


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """``train("cost=uniform", ...)`` runs ``python train.py debug=smoke ...``; returns exit code and run folder."""

    def run(*overrides: str, name: str = "run") -> tuple[int, Path]:
        folder = tmp_path / name
        quick = QUICK[:1] if not any(each.startswith("trunk=") for each in overrides) else []
        return main([*QUICK[1:], *quick, "debug=smoke", *overrides, f"hydra.run.dir={folder}"]), folder

    return run


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def cases() -> list[Any]:
    """The files that each run takes, and its marks."""
    elsewhere = ("debug", "study", "experiment")  # test_report.py, test_experiments.py
    names = [name for name in CHOICES if name.split("/")[0] not in elsewhere]
    alone = [name for name in names if name in PACKAGES or name == "trainer/gpu"]
    beside = [name for name in names if name.startswith(tuple(f"{group}/" for group in BESIDE)) and name not in alone]
    data = [name for name in names if name.startswith("dataset/")]
    together = [[each for each in pair if each] for pair in zip_longest(data, beside)]
    rest = [[name] for name in names if name not in data and name not in beside]
    marks = {"trainer/gpu": [pytest.mark.gpu, pytest.mark.slow], **dict.fromkeys(AT_ONCE, ())}
    return [
        pytest.param(each, marks=marks.get(each[0], pytest.mark.slow), id=" ".join(each)) for each in together + rest
    ]


@pytest.mark.parametrize("choices", cases())
def test_every_configuration_file_runs(
    choices: list[str],
    train: Callable[..., tuple[int, Path]],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not set(choices) & set(DRAWN):
        request.getfixturevalue("no_drawing")
    given = [choice.replace("/", "=") for choice in choices]
    code, folder = train(*given, *(need for choice in choices for need in NEEDS.get(choice, [])))
    if (package := PACKAGES.get(choices[0])) is not None and find_spec(package) is None:
        assert code == 2
        assert f"pip install {package}" in capsys.readouterr().err
        return
    assert code == 0
    result, config = result_of(folder), OmegaConf.load(folder / "config.yaml")
    assert result["synthetic_images"] is True
    assert set(given) <= set(result["overrides"])
    assert config["epochs"] == 2
    for choice in choices:
        written = OmegaConf.load(CONF / f"{choice}.yaml")
        if "defaults" not in written and not NEEDS.get(choice):
            is_global = (CONF / f"{choice}.yaml").read_text(encoding="utf-8").startswith(GLOBAL)
            assert not missing(written, config if is_global else config[choice.partition("/")[0]])


def missing(written: Any, got: Any, above: str = "") -> list[str]:
    """The keys of a file whose values did not arrive, but for what debug=smoke makes smaller."""
    small = {"weights", "epochs", "steps_per_epoch", "batch_size", "width", "progress_bar", "seed", "tags"}
    if not OmegaConf.is_dict(written):
        return [] if got == written else [above]
    kept = [key for key in written if key not in small]
    return [each for key in kept for each in missing(written[key], got[key], f"{above}.{key}".lstrip("."))]


def test_there_is_a_file_for_every_choice() -> None:
    assert {name.split("/")[0] for name in CHOICES} >= {"cost", "dataset", "head", "method", "trunk", "trainer"}
    assert {name.rpartition("/")[0] for name in WITHIN} >= {"dataset/protocol", "dataset/source"}
    assert set(FILES) - set(CHOICES) - set(WITHIN) == {"train", "hydra/help/jtln"}


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("name", [name for name in WITHIN if "/source/" in name])
def test_every_source_of_a_data_set_runs(name: str, train: Callable[..., tuple[int, Path]]) -> None:
    """The protocols are run by the data sets that follow them."""
    group, _, source = name.rpartition("/")
    needs = NEEDS["dataset/folder"][:1] if source == "folder" else []
    code, folder = train("dataset=dtd", f"{group}={source}", "dataset.image_size=32", *needs)
    assert code == 0
    written = OmegaConf.load(CONF / f"{name}.yaml").source
    got = OmegaConf.load(folder / "config.yaml").dataset.source
    assert (got is None) == (written is None)
    assert got is None or got["_target_"] == written["_target_"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("name", [name.partition("/")[2] for name in CHOICES if name.startswith("head/")])
def test_every_head_after_a_method_that_reads_no_cost(name: str, train: Callable[..., tuple[int, Path]]) -> None:
    code, folder = train("method=consecutive", f"head={name}", "cost=posterior")
    assert code == 0
    result, config = result_of(folder), OmegaConf.load(folder / "config.yaml")
    assert (result["method"], result["head"]) == ("consecutive", name)
    assert result["cost"] == ("posterior" if name == "discriminant" else None)  # the one head that reads it
    kept = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True).get("head")
    assert (result["head_fit"] is None) == (kept is None) == (name == "linear")
    if kept is not None:
        assert kept["kind"].rpartition(".")[2] == config["head"]["_target_"].rpartition(".")[2]
        assert kept["settings"] == {key: value for key, value in config["head"].items() if key != "_target_"}


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
def test_real_images_and_a_pre_trained_trunk(tmp_path: Path) -> None:
    """debug=none: the images that travel with the package, in the smallest budget."""
    budget = ["epochs=1", "steps_per_epoch=1", "pretrain.epochs=1", "pretrain.steps_per_epoch=1"]
    code = main(
        [*QUICK, *budget, "debug=none", "cost=uniform", "dataset.validation=2", f"hydra.run.dir={tmp_path}/run"]
    )
    assert code == 0
    result = result_of(tmp_path / "run")
    assert result["synthetic_images"] is False
    assert (result["target"]["test"]["n"], result["source"]["test"]["n"], result["steps"]) == (4000, 1200, 1)
    (cached,) = (tmp_path / "cache" / "pretrained").glob("*.pt")
    assert cached.name == f"{result['trunk']['name']}-{result['trunk']['pretrained']['key']}.pt"


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
def test_a_uniform_cost_matches_nothing(
    train: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = train("cost=uniform")
    told = capsys.readouterr().out
    assert code == 0
    assert result_of(folder)["head_fit"]["transport_count"] == 0
    assert "transport_count 0," in told
    assert "is matched with" not in told
    assert result_of(folder)["transport"]["strongest"] == {}
    assert (
        train("cost=wordnet", "transport.calibrate=false", name="related")[0] == 0
    )  # of synthetic images a calibration may find no relation
    assert "is matched with" in capsys.readouterr().out


def test_help_names_every_group_and_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for choice in [*CHOICES, *(each for each in WITHIN if each.startswith("dataset/"))]:
        group, _, name = choice.rpartition("/")
        (line,) = re.findall(rf"^  {group} .*(?:\n {{20,}}.*)*$", told, re.MULTILINE)
        assert re.search(rf"(?<!\w){name}(?!\w)", line), f"{choice} is missing in: {line}"
    defaults = [entry for entry in OmegaConf.load(CONF / "train.yaml")["defaults"] if entry != "_self_"]
    for group, name in ((key, value) for entry in defaults for key, value in entry.items() if "override" not in key):
        if group != "head":
            assert f"{name} (default)" in re.findall(rf"^  {group} .*$", told, re.MULTILINE)[0]
    own = {path.stem: OmegaConf.load(path).get("defaults", []) for path in (CONF / "method").glob("*.yaml")}
    heads = {name: each["override /head"] for name, those in own.items() for each in those if "override /head" in each}
    said = ", and ".join(["the default is the method's: linear", *(f"{h} for {m}" for m, h in heads.items())])
    assert said in re.sub(r"\s+(formed\s+)?", " ", told)


@pytest.mark.slow
def test_the_keys_and_examples_of_help_exist(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    told = capsys.readouterr().out
    listed = re.search(r"Keys used most: (.*?RUN)\.", " ".join(told.split()))
    assert listed is not None
    for key in listed.group(1).replace("resume=RUN", "resume").split(", "):
        value = {"trunk.weights": "none", "resume": "null"}.get(key, "1")
        assert main(["dataset=pets", f"{key}={value}", "--cfg", "job"]) == 0, key
    capsys.readouterr()
    examples = re.findall(r"^  python train\.py(.*)$", told, re.MULTILINE)
    assert len(examples) >= 3
    for example in examples:
        arguments = [argument.split(",")[0] for argument in example.split() if argument != "-m"]
        assert main([*arguments, "--cfg", "job"]) == 0, example


# Multirun.


def sweep(tmp_path: Path, *overrides: str) -> tuple[int, Path]:
    folder = tmp_path / "sweep"
    return main(["-m", *QUICK, *overrides, f"hydra.sweep.dir={folder}"]), folder


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
def test_a_multirun_ends_with_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, folder = sweep(tmp_path, "cost=uniform,centroid", "seed=0,1", "debug=smoke")
    assert code == 0
    results = [result_of(folder / str(job)) for job in range(4)]
    assert [(r["cost"], r["seed"]) for r in results] == [
        ("uniform", 0),
        ("uniform", 1),
        ("centroid (euclidean)", 0),
        ("centroid (euclidean)", 1),
    ]
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (folder / "table.md").read_text().splitlines()
        if line.startswith("|")
    ]
    assert len(rows) == 2
    for row, pair, cost in zip(rows, (results[:2], results[2:]), ("uniform", "centroid"), strict=True):
        cells = dict(zip(header, row, strict=True))
        assert f"cost={cost}" in cells["setting"]
        assert "seed=" not in cells["setting"]
        assert cells["seeds"] == "2"
        one, other = (100 * r["target"]["test"]["accuracy"] for r in pair)
        spread = abs(one - other) / 2**0.5
        assert cells["target test"] == f"{(one + other) / 2:.1f} ± {spread:.1f}"
    with open(folder / "table.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [(row["cost"], row["seed"]) for row in table] == [(r["cost"], str(r["seed"])) for r in results]
    assert [float(row["target test"]) for row in table] == [r["target"]["test"]["accuracy"] for r in results]
    assert f"sweep folder: {folder}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
def test_a_job_that_fails_lets_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budget = ["epochs=1", "steps_per_epoch=1", "pretrain=none", "cost=uniform"]
    code, folder = sweep(tmp_path, "dataset.shots=100000,1", *budget)
    assert code == 1
    assert "set dataset.shots to at most" in (folder / "0" / "error.txt").read_text()
    assert not (folder / "0" / "result.json").exists()
    assert result_of(folder / "1")["shots"] == 1
    assert not (folder / "1" / "error.txt").exists()
    told = capsys.readouterr()
    assert "failed: job 0: " in told.out
    assert "Traceback" not in told.err
    assert main(["--cfg", "job"]) == 0  # the failure is not held against the next call
    assert not SweepTable.failed


def test_an_error_of_an_earlier_sweep_in_the_folder_does_not_count(tmp_path: Path) -> None:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    table = SweepTable()
    for job in ("0", "1"):
        (tmp_path / job).mkdir()
        (tmp_path / job / "error.txt").write_text("of an earlier try")
    table.on_multirun_start(config)
    (tmp_path / "1" / "error.txt").write_text("of a job in another process")
    table.on_multirun_end(config)
    assert SweepTable.failed == ["1"]
    SweepTable.failed.clear()


@pytest.mark.slow
def test_a_job_that_crashes_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jtln.training.run.run", lambda experiment: [][1])
    code, folder = sweep(tmp_path, "cost=uniform", "seed=0,1", "debug=smoke")
    assert code == 1
    assert "IndexError" in (folder / "0" / "error.txt").read_text()
    assert (folder / "1" / "error.txt").exists()
    assert not (folder / "table.csv").exists()


# Resuming.


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
def test_resume_goes_on_in_the_same_folder(
    train: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_off(self: Any, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jtln.training.callbacks.SeedEpochs.on_train_epoch_start", cut_off)
        patch.setattr("signal.signal", lambda *_: None)  # Lightning would ignore Ctrl-C from now on
        code, folder = train("cost=uniform", "method.lambda_ot=0.5")
    assert code == 130
    told = capsys.readouterr()
    assert f"python train.py resume={folder}" in told.err
    assert not (folder / "result.json").exists()
    before = (folder / "overrides.yaml").read_text()

    begun = OmegaConf.load(folder / "config.yaml")
    OmegaConf.save(OmegaConf.merge(begun, {"method": {"gradient": "source", "new": 1}}), folder / "config.yaml")
    assert main([f"resume={folder}"]) == 2  # by a version with other defaults
    told = capsys.readouterr()
    assert "method.gradient (then source, now target), method.new (then 1, now nothing): go on with" in told.err
    OmegaConf.save(OmegaConf.merge(begun, {"dataset": {"cache": "/elsewhere"}}), folder / "config.yaml")
    assert main([f"resume={folder}"]) == 0  # where images are kept is no setting
    assert "resumed    after 1 steps" in capsys.readouterr().out
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows if row["train/loss"]] == [("0", "0"), ("1", "1")]
    assert [(row["epoch"], row["step"]) for row in rows if row["val/target/accuracy"]] == [("0", "0"), ("1", "1")]
    result = result_of(folder)
    assert (result["cost"], result["transport"]["lambda_ot"]) == ("uniform", pytest.approx(0.5))
    assert (folder / "overrides.yaml").read_text() == before
    assert not list(folder.parent.glob("outputs"))

    capsys.readouterr()
    assert main([f"resume={folder}", "cost=wordnet", "transport.epsilon=0.2"]) == 2
    assert "but got cost, transport.epsilon with resume=" in capsys.readouterr().err
    assert (folder / "overrides.yaml").read_text() == before
    assert main([f"resume={folder}", "epochs=3", "trainer=cpu", "cost=uniform"]) == 0  # what is no other setting
    assert (folder / "overrides.yaml").read_text() != before


def test_package_says_where_its_configuration_is() -> None:
    assert (CONF / "train.yaml").is_file()
    assert Path(jtln.__file__).parent in (CONF.parent, CONF.parent / "jtln")
