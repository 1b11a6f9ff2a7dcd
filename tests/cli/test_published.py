"""A published network with its own classifier as the source task, from the command line to a prediction.

The network is EfficientNet-Lite0 with ImageNet's weights, which a package carries: nothing is downloaded.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from jtln.cli.predict import main as predict
from jtln.cli.train import main
from jtln.data.files import Reader
from jtln.data.transforms import CentreCrop, ToFloat
from jtln.module import JTLN
from jtln.transport import relation
from jtln.trunks import efficientnet_lite

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own", "no_drawing")

SIZE = 32
CLASSES = ("goldfish", "hammerhead", "tench", "shed")
QUICK = ["trainer=cpu", "trainer.progress_bar=false", f"dataset.image_size={SIZE}", "dataset.crop=null"]
FEW = ["dataset.validation=0", "dataset.shots=3"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Five pictures a class: a disc of the class's colour on noise."""
    draw, place = np.random.default_rng(0), np.indices((SIZE, SIZE)) - SIZE / 2
    for label, name in enumerate(CLASSES):
        folder = tmp_path / "mine" / name
        folder.mkdir(parents=True)
        for index in range(5):
            pixels = draw.integers(0, 120, (SIZE, SIZE, 3))
            pixels[(place**2).sum(0) < (6 + index) ** 2] = np.array([60 * label, 250 - 50 * label, 128])
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "mine"


def train(folder: Path, photographs: Path, *overrides: str) -> dict[str, Any]:
    code = main(
        [f"dataset.target.root={photographs}", *QUICK, *overrides, f"hydra.run.dir={folder}", f"cache={folder}-cache"]
    )
    assert code == 0
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def test_photographs_from_the_command_to_predictions(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    given = ("head.prior=0.5", "transport.temperature=0.2")  # in images of noise all are alike
    result = train(folder, photographs, "experiment=photographs", *given)
    assert (result["method"], result["head"], result["cost"]) == ("linear_probe", "logistic", "wordnet (path)")
    assert result["target"]["val"] is None
    assert result["source"] == {"val": None, "test": None}
    assert result["target"]["test"]["n"] == 4
    assert (result["prior"]["alpha"], result["prior"]["folds"]) == (0.5, {})
    assert (folder / "report.html").is_file()
    assert {path.name for path in (folder / "plots").iterdir()} == {"confusion.png", "cost.png"}  # nothing was trained

    with open(folder / "split.csv", newline="", encoding="utf-8") as file:
        tested = [row for row in csv.DictReader(file) if row["part"] == "test"]
    out = tmp_path / "out.csv"
    paths = [str(photographs / row["image"]) for row in tested]
    assert predict([str(folder), *paths, "--output", str(out)]) == 0
    with open(out, newline="", encoding="utf-8") as file:
        predicted = {Path(row["image"]).resolve(): row["class"] for row in csv.DictReader(file)}
    assert predict([str(folder), *paths, "--explain", "--output", str(out)]) == 0
    with open(out, newline="", encoding="utf-8") as file:
        explained = list(csv.DictReader(file))
    assert [row["class"] for row in explained] == [*predicted.values()]
    shares = [float(each.rsplit(" ", 1)[1]) for row in explained for each in row["related"].split(", ") if each]
    assert shares
    assert all(0.01 <= share <= 1 for share in shares)
    right = sum(predicted[(photographs / row["image"]).resolve()] == row["class"] for row in tested)
    assert right / 4 == pytest.approx(result["target"]["test"]["accuracy"])


@pytest.mark.slow
def test_the_figures_are_those_of_a_regression_on_timms_features(photographs: Path, tmp_path: Path) -> None:
    """Test accuracy and predictions, computed once more from the trunk, the published head and scikit-learn."""
    folder = tmp_path / "run"
    fixed = ("head.prior=0.5", "head.power=1.0", "transport.calibrate=false", "dataset.shots=2")
    fixed = (*fixed, "transport.temperature=2", "head.temperature=null")
    result = train(folder, photographs, "experiment=photographs", *fixed)
    with open(folder / "split.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    trunk = efficientnet_lite(SIZE).eval()
    to_float, crop, read = ToFloat(trunk.mean, trunk.std), CentreCrop(SIZE), Reader(SIZE)
    parts = {part: [row for row in rows if row["part"] == part] for part in ("train", "test")}
    names = sorted(CLASSES)
    x, s, y = {}, {}, {}
    for part, chosen in parts.items():
        pixels = torch.stack([read(photographs / row["image"]) for row in chosen])
        with torch.no_grad():
            features = trunk(to_float(crop(pixels))).double()
        assert trunk.published is not None
        s[part] = ((features @ trunk.published.weight.double().t() + trunk.published.bias.double()) / 2).softmax(1)
        x[part] = (5 * features / features.norm(dim=1, keepdim=True)).numpy()
        y[part] = np.array([names.index(row["class"]) for row in chosen])
    with open(folder / "cost.csv", newline="", encoding="utf-8") as file:
        cost = torch.tensor([[float(cell) for cell in line[1:]] for line in list(csv.reader(file))[1:]])
    log_q = {part: (s[part] @ relation(cost, 0.1).double()).log().numpy() for part in parts}
    tempered = result["prior"]["exponent"] * log_q["train"]
    nll = (logsumexp(tempered, axis=1) - tempered[np.arange(8), y["train"]]).mean()
    assert result["prior"]["nll"] == pytest.approx(nll, rel=1e-4)

    kept = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    weight, bias = (kept["head"]["state"][key].double().numpy() for key in ("weight", "bias"))
    shares = np.exp(x["train"] @ weight.T + bias + 0.5 * log_q["train"])
    shares /= shares.sum(1, keepdims=True)
    wrong = shares - np.eye(4)[y["train"]]  # at the least, the gradient is zero
    np.testing.assert_allclose(wrong.T @ x["train"] + weight / 30, 0, atol=2e-3)
    np.testing.assert_allclose(wrong.sum(0) + bias, 0, atol=2e-3)
    found = (x["test"] @ weight.T + bias + 0.5 * log_q["test"]).argmax(1)
    assert result["target"]["test"]["accuracy"] == pytest.approx((found == y["test"]).mean())


def test_a_studys_checkpoint_names_the_published_trunk(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no weights of the trunk, and gives the network of one that has them."""
    image, found, sizes = str(photographs / "tench" / "0.png"), [], []
    for name, report in (("whole", "true"), ("small", "false")):
        train(tmp_path / name, photographs, "experiment=photographs", "cost=uniform", f"report={report}")
        checkpoint = tmp_path / name / "checkpoints" / "best.ckpt"
        sizes.append(checkpoint.stat().st_size)
        capsys.readouterr()
        assert predict([str(tmp_path / name), image]) == 0
        features = JTLN.load_from_checkpoint(checkpoint).trunk.eval()(torch.ones(1, 3, SIZE, SIZE))
        found.append((capsys.readouterr().out, features))
    assert sizes[1] < sizes[0] - 10_000_000
    assert found[1][0] == found[0][0]
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=0)
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "trunk_digest": "0"}, checkpoint)
    assert predict([str(tmp_path / "small"), image]) == 2
    assert "trunk.weights=auto" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_prior_it_is_scikit_learns(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, photographs, "experiment=photographs", "head.prior=0", "head.power=1.0", "head.temperature=null")
    kept = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["head"]["state"]["weight"]
    with open(folder / "split.csv", newline="", encoding="utf-8") as file:
        chosen = [row for row in csv.DictReader(file) if row["part"] == "train"]
    trunk, read = efficientnet_lite(SIZE).eval(), Reader(SIZE)
    with torch.no_grad():
        pixels = ToFloat(trunk.mean, trunk.std)(torch.stack([read(photographs / row["image"]) for row in chosen]))
        features = trunk(pixels).double()
    rows = (5 * features / features.norm(dim=1, keepdim=True)).numpy()
    rows = np.concatenate([rows, np.full((len(rows), 1), 30**-0.5)], axis=1)
    theirs = LogisticRegression(C=30, fit_intercept=False, tol=1e-9, max_iter=5000).fit(
        rows, [row["class"] for row in chosen]
    )
    np.testing.assert_allclose(kept.numpy(), theirs.coef_[:, :-1], atol=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("method=linear_probe",),
        ("head=cosine",),
        ("method=jtln",),
        ("method=co_tuning",),
        ("method=consecutive", "trunk.freeze=true"),
        ("cost=posterior", "method=jtln_annealed"),
    ],
)
def test_methods_and_heads_that_read_no_source_image(
    overrides: tuple[str, ...], photographs: Path, tmp_path: Path
) -> None:
    small = ("epochs=1", "steps_per_epoch=2", "batch_size.target=4", *FEW)
    choice = ("dataset=folder", "dataset/source=classifier", "trunk=efficientnet_lite0")
    result = train(tmp_path / "run", photographs, *choice, *small, *overrides)
    assert result["target"]["test"]["n"] == 4
    assert result["prior"]["alpha"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        pytest.param(("head=discriminant",), "head=discriminant", marks=pytest.mark.slow),
        pytest.param(("cost=centroid",), "cost=centroid", marks=pytest.mark.slow),
        pytest.param(("method=joint", "method.lambda_source=1"), "lambda_source", marks=pytest.mark.slow),
        pytest.param(("method=jtln", "method.ot_images=both"), "ot_images=both", marks=pytest.mark.slow),
        pytest.param(("pretrain=source",), "pretrain=source", marks=pytest.mark.slow),
        (("trunk=alexnet", "trunk.weights=none"), "classifier of 1000 classes"),
        pytest.param(("method=l2sp", "trunk.freeze=true"), "trunk.freeze=true", marks=pytest.mark.slow),
        (("method=co_tuning", "trunk.freeze=true"), "trunk.freeze=true"),
        pytest.param(("method=linear_probe", "head=linear"), "head=linear", marks=pytest.mark.slow),
        (("dataset.source.labels=imagenet-12k",), "11821 classes"),
    ],
)
def test_what_needs_source_images_is_refused_in_one_line(
    overrides: tuple[str, ...], named: str, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = ["dataset=folder", "dataset/source=classifier", f"dataset.target.root={photographs}"]
    trunk = [] if any(each.startswith("trunk=") for each in overrides) else ["trunk=efficientnet_lite0"]
    assert main([*choice, *trunk, *QUICK, *FEW, "epochs=1", *overrides]) == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("error: ")
    assert named in printed
