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
from runs import column, cut_off, rows
from tiny import CPU, TinySpec

from jtln.costs import CentroidCost, FileCost, UniformCost, WordNetCost
from jtln.costs.file import save_cost
from jtln.data.pairs import Pair, PairSpec
from jtln.data.transforms import ToFloat
from jtln.errors import UserError
from jtln.heads import Cosine, Discriminant, Head, Linear
from jtln.heads.discriminant import TRANSPORT_COUNTS, DiscriminantFit
from jtln.methods import Method
from jtln.methods.co_tuning import CoTuning
from jtln.module import JTLN, Optimization
from jtln.reporting.predictions import read_predictions
from jtln.schedules import Schedule
from jtln.training.experiment import Experiment
from jtln.training.log import calibration_message
from jtln.training.pretraining import Pretraining
from jtln.training.run import run, take_published
from jtln.training.trainer import Budget, TrainerSettings, best_and_last
from jtln.transport import TransportLoss, TransportSettings, class_plan
from jtln.trunks.base import PublishedHead, Trunk

pytestmark = pytest.mark.slow

KEYS = {
    *("method", "dataset", "cost", "shots", "seed", "overrides", "git_commit", "versions"),
    *("target", "source", "transport", "seconds", "images_per_second"),
}  # design.md, section 5


@pytest.fixture
def experiment(tiny: PairSpec, make_trunk: Callable[..., Trunk], tmp_path: Path) -> Experiment:
    """Dropout, augmentation, pre-training and a cost that follows the features: everything at once."""
    return Experiment(
        method=Method("jtln", lambda_source=1.0, lambda_ot=1.0),
        head=Linear(),
        cost=CentroidCost(),
        transport=TransportSettings(calibrate=False),
        spec=tiny,
        make_trunk=partial(make_trunk, 0.2),
        budget=Budget(3, 4, 8, 6),
        optimization=Optimization(partial(torch.optim.SGD, lr=0.3), 0.5),
        trainer=CPU,
        folder=tmp_path / "run",
        dataset="tiny",
        cost_name="centroid",
        pretraining=Pretraining(Budget(1, 3, 8, 1), 0, Optimization(partial(torch.optim.AdamW, lr=1e-2), 1.0)),
        cache=tmp_path / "cache",
        config="seed: 0\n",
        overrides=["cost=centroid", "dataset.source_classes=[a b]"],
        command="python train.py cost=centroid",
    )


def table(path: Path) -> dict[str, list[float]]:
    """The rows of cost.csv by their source class."""
    with open(path, newline="", encoding="utf-8") as file:
        return {name: [float(cell) for cell in cells] for name, *cells in list(csv.reader(file))[1:]}


def network(experiment: Experiment) -> JTLN:
    """The network of a run, with weights of its own."""
    loss = TransportLoss(torch.ones(4, 3))
    return JTLN(experiment.make_trunk(), 4, 3, experiment.method, loss, experiment.optimization)


def test_the_run_folder(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(experiment)
    folder = experiment.folder
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    pictures = {f"plots/{name}.png" for name in ("confusion", "cost", "plan", "training")}
    texts = {
        "config.yaml",
        "overrides.yaml",
        "result.json",
        "metrics.csv",
        "cost.csv",
        "split.csv",
        "data.json",
        "predictions.npz",
        "report.html",
    }
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
    assert (read["head"], read["head_fit"], read["calibration"]) == ("linear", None, None)
    assert "head" not in torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)

    with open(folder / "cost.csv", newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file))
    assert header[1:] == ["elk", "fox", "gnu"]
    assert [line[0] for line in lines] == ["ant", "bee", "cat", "dog"]
    cost = torch.tensor([[float(cell) for cell in line[1:]] for line in lines])
    kept = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]["transport.cost"]
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
def test_the_test_predictions_are_kept(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image by image those of the chosen checkpoint, whether or not a page is written."""
    monkeypatch.setattr("jtln.training.run_folder.write_page", lambda *_: None)
    result = run(experiment)
    assert not (experiment.folder / "report.html").exists()
    found = read_predictions(experiment.folder)
    module = network(experiment).eval()
    module.load_state_dict(torch.load(experiment.folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"])
    test = experiment.spec.load().target.test
    images, labels = test.__getitems__(list(range(len(test))))
    with torch.no_grad():
        logits = module(ToFloat(module.trunk.mean, module.trunk.std)(images)).target
    assert found.label.tolist() == labels.tolist()
    assert found.predicted.tolist() == logits.argmax(1).tolist()
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(torch.from_numpy(found.nll), nll, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(found.confidence), logits.softmax(1).amax(1), atol=1e-5, rtol=1e-4)
    assert float(found.right.mean()) == pytest.approx(result["target"]["test"]["accuracy"])


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
    monkeypatch.setattr("jtln.training.run_folder.write_page", lambda *_: None)  # it shows some of them, at the end
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
    experiment = replace(
        experiment, budget=Budget(6, 6, 8, 6), optimization=replace(experiment.optimization, schedule=Wrecks())
    )
    result = run(experiment)
    accuracies = list(column(experiment.folder, "val/target/accuracy").values())
    best = max(range(6), key=lambda epoch: (accuracies[epoch], epoch))
    assert accuracies[best] > accuracies[-1]  # the last one would be the wrong one
    assert result["best_epoch"] == best
    assert result["target"]["val"]["accuracy"] == pytest.approx(accuracies[best])

    checkpoint = torch.load(experiment.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == best
    assert "optimizer_states" not in checkpoint  # which are two thirds of what it takes to go on
    last = torch.load(experiment.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (5, 36)  # though it is not the best
    assert len(last["optimizer_states"]) == 1
    pair = experiment.spec.load()
    module = network(experiment)
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
@pytest.mark.parametrize("head", [Discriminant(mixed_from=1000), Cosine()])
@pytest.mark.parametrize("trains_transport", [True, False])
def test_a_head_takes_the_place_of_the_trained_one(trains_transport: bool, head: Head, experiment: Experiment) -> None:
    """After training; the checkpoint holds it beside what was trained, and resuming changes nothing."""
    experiment = replace(experiment, head=head)
    if not trains_transport:
        experiment = replace(experiment, method=Method("consecutive"))
    result = run(experiment)
    uses_cost = trains_transport or isinstance(head, Discriminant)
    if uses_cost:  # of the images' plans, or else of the plan between the classes
        assert result["transport"]["strongest"].keys() == {"elk", "fox", "gnu"}
        assert result["transport"]["strongest_from"] == ("images" if trains_transport else "classes")
    if uses_cost and not trains_transport:
        matrix = torch.tensor(list(table(experiment.folder / "cost.csv").values()))
        shares = class_plan(matrix, experiment.transport.epsilon).double()
        shares /= shares.sum(0)
        for j, name in enumerate(("elk", "fox", "gnu")):
            (source, share), *_ = result["transport"]["strongest"][name]
            assert share == pytest.approx(float(shares[:, j].max()), abs=1e-4)
            assert source == ("ant", "bee", "cat", "dog")[int(shares[:, j].argmax())]
    assert (result["transport"] is not None) == uses_cost == (experiment.folder / "cost.csv").exists()
    assert (experiment.folder / "plots" / "plan.png").exists() == trains_transport
    assert f"The target head: {head.name}" in (experiment.folder / "report.html").read_text(encoding="utf-8")
    assert result["head"] == head.name
    if isinstance(head, Discriminant):
        assert result["head_fit"]["transport_count"] in TRANSPORT_COUNTS
        assert result["head_fit"]["trained_share"] == 0.0

    best = torch.load(experiment.folder / "checkpoints" / "best.ckpt", weights_only=True)
    module = network(experiment).eval()
    module.load_state_dict(best["state_dict"])
    pair = experiment.spec.load()
    images, labels = pair.target.test.__getitems__(list(range(len(pair.target.test))))
    classifier = head.classifier(module.trunk.dim, 3)
    classifier.load_state_dict(best["head"]["state"])
    logits = classifier(module.trunk(ToFloat(module.trunk.mean, module.trunk.std)(images)))
    assert float((logits.argmax(1) == labels).float().mean()) == pytest.approx(result["target"]["test"]["accuracy"])
    assert best["head"]["settings"] == head.settings()
    trained = torch.load(experiment.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert trained.keys() == best["state_dict"].keys()

    again = run(replace(experiment, resume=True, cost=CentroidCost()))
    assert again["head_fit"] == result["head_fit"]
    assert again["target"] == result["target"]


class Unvalidated(TinySpec):
    """The target has no validation image; the cost relates the source's classes to each other, too."""

    def load(self) -> Pair:
        pair = super().load()
        return replace(pair, target=replace(pair.target, val=pair.target.val.subset([])))


def test_without_validation_images_the_discriminant_is_chosen_on_episodes(experiment: Experiment) -> None:
    spec, cost = Unvalidated(), WordNetCost()
    head, method = Discriminant(), Method("consecutive")
    result = run(replace(experiment, spec=spec, cost=cost, cost_name="wordnet", head=head, method=method))
    assert result["head_fit"].keys() == {*DiscriminantFit._fields, "episodes"}
    assert (result["head_fit"]["episodes"], result["target"]["val"]) == (5, None)
    assert result["target"]["test"]["n"] == 12


def test_the_linear_head_is_tested_as_validation_chose_it(experiment: Experiment) -> None:
    """A head that is formed afterwards changes no training: the checkpoints are the same."""
    run(experiment)
    other = replace(experiment, head=Cosine(), folder=experiment.folder.with_name("other"), cost=CentroidCost())
    run(other)
    kept = [
        torch.load(each.folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for each in (experiment, other)
    ]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_a_cost_that_only_the_head_uses_cannot_follow_the_batches(experiment: Experiment) -> None:
    alone = replace(experiment, method=Method("consecutive"), head=Discriminant())
    with pytest.raises(UserError, match=r"update=ema of cost=centroid.*cost\.update=once"):
        replace(alone, cost=CentroidCost(update="ema"))
    replace(alone, method=Method(lambda_source=1.0, lambda_ot=1.0), cost=CentroidCost(update="ema"))


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("trains_transport", [True, False])
def test_a_cost_that_follows_each_epoch_is_the_heads_as_well(trains_transport: bool, experiment: Experiment) -> None:
    """cost.csv has the one that the head was formed with."""
    method = experiment.method if trains_transport else Method("consecutive")
    experiment = replace(experiment, method=method, head=Discriminant(), cost=CentroidCost(update="epoch"))
    run(experiment)
    state = torch.load(experiment.folder / "checkpoints" / "last.ckpt", weights_only=True)
    (matrix,) = [each["matrix"] for key, each in state["callbacks"].items() if key.startswith("FollowFeatures")]
    with open(experiment.folder / "cost.csv", newline="", encoding="utf-8") as lines:
        written = torch.tensor([[float(cell) for cell in line[1:]] for line in list(csv.reader(lines))[1:]])
    if trains_transport:  # the cost of the epoch whose weights validation chose
        torch.testing.assert_close(state["state_dict"]["transport.cost"], matrix)
        best = torch.load(experiment.folder / "checkpoints" / "best.ckpt", weights_only=True)
        matrix = best["state_dict"]["transport.cost"]
    torch.testing.assert_close(written, matrix, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("no_drawing")
def test_a_cost_is_calibrated_before_training(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    save_cost(tmp_path / "mine.csv", given, experiment.spec.source_classes, experiment.spec.target_classes)
    file, settings = FileCost(tmp_path / "mine.csv", scale="none"), TransportSettings()
    experiment = replace(experiment, transport=settings, cost=file, cost_name="file")
    found = run(experiment)["calibration"]
    assert found["chance"] == pytest.approx(math.log(3))
    assert found["nll"] < found["chance"]
    assert 0.02 <= found["epsilon"] <= 2.6
    printed = " ".join(capsys.readouterr().out.split())
    assert f"cost file, 4 x 3, calibrated: epsilon {found['epsilon']:.2g}" in printed
    assert printed.index("calibrated") < printed.index("training 12 steps")

    kept = torch.load(experiment.folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert not torch.allclose(kept["transport.cost"], given, atol=0.01)
    with open(experiment.folder / "cost.csv", newline="", encoding="utf-8") as lines:  # as given, all the same
        written = [[float(cell) for cell in line[1:]] for line in list(csv.reader(lines))[1:]]
    torch.testing.assert_close(torch.tensor(written), given, rtol=1e-4, atol=1e-5)

    # Neither where nobody asks, nor where the labelled images gave the cost, nor without a source head that reads them.
    assert experiment.calibrates
    assert not replace(experiment, transport=TransportSettings(calibrate=False)).calibrates
    assert not replace(experiment, cost=CentroidCost()).calibrates
    assert not replace(experiment, pretraining=None).calibrates
    assert not replace(experiment, method=Method("joint", lambda_source=1.0)).calibrates  # nothing reads the cost


def test_the_calibration_that_found_nothing_is_printed() -> None:
    assert calibration_message(None) == []
    for epsilon in (None, math.inf):
        (message,) = calibration_message({"epsilon": epsilon, "nll": math.log(3), "chance": math.log(3)})
        assert "no likelier" in message


@pytest.mark.parametrize(("rate", "told"), [(1.0, True), (0.1, False)])
@pytest.mark.usefixtures("no_drawing")
def test_published_weights_at_the_heads_rate_are_remarked_on(
    rate: float, told: bool, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    def published() -> Trunk:
        trunk = experiment.make_trunk()
        trunk.pretrained = True
        return trunk

    optimization = replace(experiment.optimization, trunk_lr_factor=rate)
    few = Budget(1, 1, 8, 6)
    run(replace(experiment, make_trunk=published, optimization=optimization, budget=few, pretraining=None))
    assert ("trunk_lr_factor=0.1" in capsys.readouterr().out) == told


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
        torch.load(r.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for r in (whole, halves)
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


def test_trainer_settings_that_cannot_be_are_the_users_mistake(experiment: Experiment) -> None:
    with pytest.raises(UserError, match=r"trainer\.\*.*foo"):
        run(replace(experiment, pretraining=None, trainer=TrainerSettings({"foo": 1}, progress_bar=False)))


class Classified(TinySpec):
    """The source classes are those of a published classifier, which a trunk may or may not have."""

    classifier_rows = (0, 1, 2, 3)
    classifier_size = 4


def test_a_source_head_that_nothing_trained_is_not_read(experiment: Experiment) -> None:
    method = Method("co_tuning", penalty=CoTuning())
    reading = replace(experiment, spec=Classified(), pretraining=None, method=method, cost=UniformCost())
    with pytest.raises(UserError, match=r"source head that was trained .*method=co_tuning"):
        run(reading)


def test_a_published_head_starts_the_source_head(experiment: Experiment) -> None:
    def with_head() -> Trunk:
        trunk = experiment.make_trunk()
        trunk.published = PublishedHead(torch.ones(4, trunk.dim), torch.arange(4.0))
        return trunk

    head = torch.nn.Linear(6, 4)
    assert take_published(head, with_head(), Classified())
    assert head.bias.tolist() == [0.0, 1.0, 2.0, 3.0]
    method = Method("co_tuning", penalty=CoTuning())
    result = run(replace(experiment, make_trunk=with_head, spec=Classified(), pretraining=None, method=method))
    assert result["source"]["test"] is not None


@pytest.mark.parametrize("update", ["epoch", "ema"])
def test_a_prior_needs_a_cost_that_stays(experiment: Experiment, update: str) -> None:
    with pytest.raises(UserError, match=f"update={update}"):
        replace(experiment, head=Linear(prior=0.5), cost=CentroidCost(update=update))


def test_labels_that_a_cost_was_read_from_choose_no_prior(experiment: Experiment) -> None:
    """They would be likelier under it than labels that it has not seen."""
    with pytest.raises(UserError, match=r"head\.prior=auto.*cost=centroid"):
        replace(experiment, head=Linear(prior="auto"), cost=CentroidCost(update="once"))
    found = run(replace(experiment, head=Linear(prior=0.5), cost=CentroidCost(update="once")))["prior"]
    assert (found["alpha"], found["epsilon"]) == (0.5, experiment.transport.epsilon)
