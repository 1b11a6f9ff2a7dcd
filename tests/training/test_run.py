"""One run from end to end, without the command line."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from jtln.costs import CentroidCost, FileCost
from jtln.costs.file import save_cost
from jtln.data.pairs import PairSpec
from jtln.data.transforms import ToFloat
from jtln.errors import UserError
from jtln.heads.discriminant import TRANSPORTED, Discriminant
from jtln.schedules import Constant, Schedule
from jtln.training import run as module_under_test
from jtln.training.experiment import Experiment, Method
from jtln.training.log import cost_sentences
from jtln.training.pretraining import Pretraining
from jtln.training.run import build_module, run
from jtln.training.trainer import Budget, TrainerSettings, best_and_last
from jtln.trunks.base import Trunk

CPU = TrainerSettings({"accelerator": "cpu", "devices": 1}, progress_bar=False)
KEYS = {
    *("method", "dataset", "cost", "shots", "seed", "overrides", "git_commit", "versions"),
    *("target", "source", "transport", "seconds", "images_per_second"),
}  # design.md, section 5


@pytest.fixture
def experiment(tiny: PairSpec, make_trunk: Callable[..., Trunk], tmp_path: Path) -> Experiment:
    """Dropout, augmentation, pre-training and a cost that follows the features: everything at once."""
    return Experiment(
        method=Method("jtln", 1.0, lambda_ot=1.0),
        dataset="tiny",
        cost_name="centroid",
        spec=tiny,
        cost=CentroidCost(),
        make_trunk=partial(make_trunk, 0.2),
        budget=Budget(3, 4, 8, 6),
        optimizer=partial(torch.optim.SGD, lr=0.3),
        lr_schedule=Constant(),
        trunk_lr_factor=0.5,
        trainer=CPU,
        folder=tmp_path / "run",
        pretraining=Pretraining(Budget(1, 3, 8, 1), 0, partial(torch.optim.AdamW, lr=1e-2), Constant()),
        cache=tmp_path / "cache",
        config="seed: 0\n",
        overrides=["cost=centroid", "dataset.source_classes=[a b]"],
        command="python train.py cost=centroid",
    )


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(folder: Path, name: str) -> dict[int, float]:
    """{step: value} of the rows of metrics.csv that hold a value."""
    return {int(row["step"]): float(row[name]) for row in rows(folder) if row[name]}


def test_the_run_folder(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(experiment)
    folder = experiment.folder
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    pictures = {f"plots/{name}.png" for name in ("confusion", "cost", "plan", "training")}
    texts = {"config.yaml", "overrides.yaml", "result.json", "metrics.csv", "cost.csv", "split.csv", "report.html"}
    assert found == texts | pictures | {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}

    assert (folder / "config.yaml").read_text() == "seed: 0\n"
    assert (folder / "overrides.yaml").read_text() == '- "cost=centroid"\n- "dataset.source_classes=[a b]"\n'
    read = json.loads((folder / "result.json").read_text())
    assert read == json.loads(json.dumps(result))
    assert read.keys() >= KEYS
    for head, classes in (("target", 3), ("source", 4)):
        for split in ("val", "test"):
            measured = read[head][split]
            assert measured.keys() == {"accuracy", "mean_class_accuracy", "macro_f1", "ece", "n"}
            assert measured["n"] == 4 * classes
            assert all(0 <= measured[key] <= 1 for key in measured.keys() - {"n"})
            assert measured["accuracy"] * measured["n"] == pytest.approx(round(measured["accuracy"] * measured["n"]))
    assert (read["shots"], read["seed"], read["cost"], read["steps"]) == (4, 0, "centroid", 12)
    assert read["hardware"].startswith("cpu, ")
    assert read["transport"]["strongest"].keys() == {"elk", "fox", "gnu"}
    assert read["head_end"] is None  # of a head that stays as it was trained
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert best["head_found"].tolist() == [-1] * 5

    with open(folder / "cost.csv", newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file))
    assert header[1:] == ["elk", "fox", "gnu"]
    assert [line[0] for line in lines] == ["ant", "bee", "cat", "dog"]
    cost = torch.tensor([[float(cell) for cell in line[1:]] for line in lines])
    kept = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=False)["state_dict"]["transport.cost"]
    torch.testing.assert_close(cost, kept, rtol=1e-5, atol=1e-6)

    for picture in pictures:
        with Image.open(folder / picture) as image:
            image.verify()
            assert image.format == "PNG"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "python train.py cost=centroid" in page

    assert set(column(folder, "val/target/accuracy")) == {3, 7, 11}  # the last step of each epoch, each once
    assert set(column(folder, "test/target/accuracy")) == {12}
    assert column(folder, "test/target/accuracy")[12] == pytest.approx(read["target"]["test"]["accuracy"])
    told = capsys.readouterr().out
    assert f"run folder: {folder}" in told


@pytest.mark.usefixtures("no_drawing")
def test_the_test_part_is_read_once_and_is_not_the_validation_part(experiment: Experiment, monkeypatch: Any) -> None:
    pair, read = experiment.spec.load(), []
    for head in (pair.source, pair.target):
        parts = {name: getattr(head, name) for name in ("train", "val", "test")}
        for name, part in parts.items():
            original = part.__getitems__
            monkeypatch.setattr(
                part, "__getitems__", lambda indices, name=name, get=original: read.append(name) or get(indices)
            )
        names = [set(part.names) for part in parts.values()]
        assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]
    monkeypatch.setattr(type(experiment.spec), "load", lambda self: pair)
    run(experiment)
    assert read.count("test") == 2  # one batch of the target's and one of the source's
    assert read.index("test") > max(index for index, name in enumerate(read) if name == "train")


@dataclass(frozen=True)
class Wrecks(Schedule):
    """Learns, and from the middle on goes uphill."""

    def shape(self, progress: float) -> float:
        return 1.0 if progress < 0.5 else -1.0


@pytest.mark.usefixtures("no_drawing")
def test_the_checkpoint_with_the_best_target_validation_accuracy_is_tested(experiment: Experiment) -> None:
    experiment = replace(experiment, budget=Budget(6, 6, 8, 6), lr_schedule=Wrecks())
    result = run(experiment)
    accuracies = list(column(experiment.folder, "val/target/accuracy").values())
    best = max(range(6), key=lambda epoch: (accuracies[epoch], epoch))
    assert accuracies[best] > accuracies[-1]  # the last one would be the wrong one
    assert result["best_epoch"] == best
    assert result["target"]["val"]["accuracy"] == pytest.approx(accuracies[best])

    checkpoint = torch.load(experiment.folder / "checkpoints" / "best.ckpt", weights_only=False)
    assert checkpoint["epoch"] == best
    assert "optimizer_states" not in checkpoint  # which are two thirds of what it takes to go on
    last = torch.load(experiment.folder / "checkpoints" / "last.ckpt", weights_only=False)
    assert (last["epoch"], last["global_step"]) == (5, 36)  # though it is not the best
    assert len(last["optimizer_states"]) == 1
    pair = experiment.spec.load()
    module = build_module(experiment, pair)
    module.load_state_dict(checkpoint["state_dict"])
    images, labels = pair.target.test.__getitems__(list(range(12)))
    predicted = module.eval()((images / 255 - 0.5) / 0.5).target.argmax(1)
    assert result["target"]["test"]["accuracy"] == pytest.approx(float((predicted == labels).float().mean()))


@pytest.mark.usefixtures("no_drawing")
def test_one_seed_gives_the_same_numbers_again_and_another_does_not(experiment: Experiment, tmp_path: Path) -> None:
    results = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        torch.rand(7)  # what was drawn before has no influence
        results[name] = run(replace(experiment, folder=tmp_path / name, seed=seed, cost=CentroidCost()))
    assert results["one"]["target"] == results["again"]["target"]
    assert results["one"]["source"] == results["again"]["source"]
    losses = {name: column(tmp_path / name, "train/loss") for name in results}
    assert losses["one"] == losses["again"] != losses["other"]
    assert [results[name]["trunk"]["pretrained"]["cached"] for name in results] == [False, True, True]


@pytest.mark.usefixtures("no_drawing")
def test_a_run_from_the_cache_equals_the_one_that_filled_it(experiment: Experiment, tmp_path: Path) -> None:
    run(experiment)
    run(replace(experiment, folder=tmp_path / "again", cost=CentroidCost()))
    assert rows(experiment.folder) == rows(tmp_path / "again")


def test_without_a_transport_loss_nothing_is_said_of_one(experiment: Experiment) -> None:
    result = run(replace(experiment, method=Method("target_only"), pretraining=None))
    assert result["cost"] is None
    assert result["transport"] is None
    assert not (experiment.folder / "cost.csv").exists()
    assert {path.stem for path in experiment.folder.glob("plots/*.png")} == {"confusion", "training"}


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("trains_with_it", [True, False])
def test_the_head_ends_as_a_discriminant(
    trains_with_it: bool, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, after the training; the checkpoint has what was tested, and resuming the finished run changes nothing."""
    method = replace(experiment.method, head_end=Discriminant(mixed_from=1000))
    if not trains_with_it:
        method = replace(method, name="discriminant", lambda_source=0.0, lambda_ot=0.0)
    result = run(replace(experiment, method=method))
    assert ("strongest" in result["transport"]) == (experiment.folder / "plots" / "plan.png").exists() == trains_with_it
    assert "The target head's end" in (experiment.folder / "report.html").read_text(encoding="utf-8")
    found = result["head_end"]
    assert found["transported"] in TRANSPORTED
    assert found["trained"] == 0.0
    told = " ".join(capsys.readouterr().out.split())
    assert f"a class's transported mean counts for {found['transported']:g} labelled images" in told

    path = experiment.folder / "checkpoints" / "best.ckpt"
    kept = torch.load(path, weights_only=True)["state_dict"]
    assert kept["head_found"].tolist() == pytest.approx(list(found.values()), abs=1e-6)
    last = torch.load(experiment.folder / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    assert last["head_found"].tolist() == [-1] * 5
    pair = experiment.spec.load()
    module = build_module(replace(experiment, method=method), pair).eval()
    module.load_state_dict(kept)
    images, labels = pair.target.test.__getitems__(list(range(len(pair.target.test))))
    logits = module(ToFloat(module.trunk.mean, module.trunk.std)(images)).target
    tested = float((logits.argmax(1) == labels).float().mean())
    assert tested == pytest.approx(result["target"]["test"]["accuracy"])

    again = run(replace(experiment, method=method, resume=True))
    assert again["head_end"] == found
    assert again["target"] == result["target"]
    assert all(torch.equal(v, kept[k]) for k, v in torch.load(path, weights_only=True)["state_dict"].items())


def test_a_cost_that_only_the_end_uses_cannot_follow_the_batches(experiment: Experiment) -> None:
    method = Method("discriminant", head_end=Discriminant())
    with pytest.raises(UserError, match=r"update=ema of cost=centroid: give cost\.update=once"):
        replace(experiment, method=method, cost=CentroidCost(update="ema"))
    replace(experiment, method=replace(method, lambda_ot=1.0), cost=CentroidCost(update="ema"))


def test_a_checkpoint_from_before_heads_had_this_end(experiment: Experiment) -> None:
    module = build_module(experiment, experiment.spec.load())
    state = {name: value for name, value in module.state_dict().items() if name not in ("head_found", "calibration")}
    for older, found in (("head_evidence", [-1, -1, -1, -1, 0]), ("head_found", [4, 3, 0, 2, 0])):
        module.on_load_checkpoint(checkpoint := {"state_dict": state | {older: torch.tensor([4.0, 3.0, 0.0, 2.0])}})
        module.load_state_dict(checkpoint["state_dict"])
        assert module.head_found.tolist() == found


@pytest.mark.usefixtures("no_drawing")
def test_what_the_labelled_images_bear_out_of_a_cost_is_told(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    save_cost(tmp_path / "mine.csv", given, experiment.spec.source_classes, experiment.spec.target_classes)
    file = FileCost(tmp_path / "mine.csv", scale="none")
    method = replace(experiment.method, calibrate=True)
    experiment = replace(experiment, method=method, cost=file, cost_name="file")
    found = run(experiment)["transport"]["calibration"]
    assert found["chance"] == pytest.approx(math.log(3))
    assert found["surprise"] < found["chance"]
    assert 0.02 <= found["epsilon"] <= 2.6
    told = " ".join(capsys.readouterr().out.split())
    assert "cost file, 4 x 3, as far as the labelled images bear it out" in told
    assert f"by it alone, at epsilon {found['epsilon']:.2g} of its range" in told

    kept = torch.load(experiment.folder / "checkpoints" / "best.ckpt", weights_only=False)["state_dict"]
    assert not torch.allclose(kept["transport.cost"], given, atol=0.01)
    with open(experiment.folder / "cost.csv", newline="", encoding="utf-8") as lines:  # what was given, all the same
        written = [[float(cell) for cell in line[1:]] for line in list(csv.reader(lines))[1:]]
    torch.testing.assert_close(torch.tensor(written), given, rtol=1e-4, atol=1e-5)

    # Neither where nobody asks, nor where the labelled images gave the cost, nor without a source head that reads them.
    assert not replace(experiment, method=replace(method, calibrate=False)).calibrate
    assert not replace(experiment, cost=CentroidCost()).calibrate
    assert not replace(experiment, pretraining=None).calibrate


def test_a_cost_that_says_nothing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cost_sentences(None) == []
    (told,) = cost_sentences({"epsilon": None, "surprise": math.log(3), "chance": math.log(3)})
    assert "do not bear the cost out" in told


@pytest.mark.parametrize(("rate", "told"), [(1.0, True), (0.1, False)])
@pytest.mark.usefixtures("no_drawing")
def test_published_weights_at_the_heads_rate_are_remarked_on(
    rate: float, told: bool, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    def published() -> Trunk:
        trunk = experiment.make_trunk()
        trunk.pretrained = True
        return trunk

    run(replace(experiment, make_trunk=published, trunk_lr_factor=rate, budget=Budget(1, 1, 8, 6), pretraining=None))
    assert ("trunk_lr_factor=0.1" in capsys.readouterr().out) == told


class CutOff(CSVLogger):
    """Ctrl-C in the middle of the second epoch."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        if step == 5:
            raise KeyboardInterrupt


def cut_off(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("jtln.training.trainer.CSVLogger", CutOff)
        patch.setattr("signal.signal", lambda *_: None)  # Lightning would ignore Ctrl-C from now on
        with pytest.raises(KeyboardInterrupt):
            run(experiment)


@pytest.mark.usefixtures("no_drawing")
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = replace(experiment, trainer=TrainerSettings({**CPU.options, "log_every_n_steps": 1}, progress_bar=False))
    whole = replace(fast, folder=tmp_path / "whole")
    expected = run(whole)
    halves = replace(fast, cost=CentroidCost())
    cut_off(halves, monkeypatch)
    assert not (halves.folder / "result.json").exists()
    assert max(column(halves.folder, "train/loss")) >= 3

    result = run(replace(halves, resume=True, cost=CentroidCost()))
    assert rows(halves.folder) == rows(whole.folder)
    assert (result["target"], result["source"]) == (expected["target"], expected["source"])
    ends = [
        torch.load(r.folder / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"] for r in (whole, halves)
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_moved_folder_remembers_its_best_checkpoint(tmp_path: Path) -> None:
    best, _ = best_and_last(tmp_path / "new")
    here, there, score = str(tmp_path / "new/checkpoints/best.ckpt"), "/old/checkpoints/best.ckpt", torch.tensor(0.5)
    earlier = best.state_dict() | {
        "dirpath": "/old/checkpoints",
        "best_model_path": there,
        "best_model_score": score,
        "best_k_models": {there: score},
        "kth_best_model_path": there,
        "kth_value": score,
    }
    best.load_state_dict(earlier)
    assert (best.best_model_path, best.kth_best_model_path, best.last_model_path) == (here, here, "")
    assert best.best_k_models == {here: score}  # a worse one does not take its place
    assert best.kth_value == best.best_model_score == score


@pytest.mark.usefixtures("no_drawing")
def test_a_finished_run_may_be_resumed(experiment: Experiment) -> None:
    first = run(experiment)
    before = rows(experiment.folder)
    again = run(replace(experiment, resume=True, cost=CentroidCost()))
    assert again["target"] == first["target"]
    assert rows(experiment.folder) == before


@pytest.mark.usefixtures("no_drawing")
def test_a_run_without_a_checkpoint_starts_anew(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    run(replace(experiment, resume=True))
    assert "there is no checkpoint yet" in capsys.readouterr().out
    assert min(column(experiment.folder, "train/loss")) < 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0}, "epsilon > 0"),
        ({"epsilon": "small"}, "epsilon > 0"),
        ({"on": "sorce"}, "method.on 'sorce'.*Did you mean 'source'"),
        ({"gradient": "none"}, "expected one of both, source, target"),
        ({"lambda_ot_unit": "eps"}, "1/epsilon"),
        ({"lambda_ot": -1}, "method.lambda_ot >= 0"),
        ({"lambda_source": -1}, "method.lambda_source >= 0"),
    ],
)
def test_a_method_refuses_what_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Method("jtln", **settings)


def test_trainer_settings_that_cannot_be_are_the_users_mistake(experiment: Experiment) -> None:
    with pytest.raises(UserError, match=r"trainer\.\*.*foo"):
        run(replace(experiment, pretraining=None, trainer=TrainerSettings({"foo": 1}, progress_bar=False)))


def test_module_under_test_has_no_hydra() -> None:
    assert "hydra" not in vars(module_under_test)
