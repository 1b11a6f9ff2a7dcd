"""Runs on features that are computed once, against the same network on images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import TinySpec, tiny_trunk

from jtln.data.pairs import Pair
from jtln.data.transforms import Augment
from jtln.methods import Method
from jtln.module import JTLN
from jtln.training.frozen import ComputedFeatures, feature_data, feature_precision, shared_trunk
from jtln.training.trainer import Budget, pair_data
from jtln.trunks import Trunk
from jtln.trunks.rebuild import trunk_digest

CPU = torch.device("cpu")
BUDGET = Budget(1, 2, 4, 3)


@pytest.fixture
def pair() -> Pair:
    return TinySpec().load()


def test_features_are_the_trunks_own(pair: Pair, tmp_path: Path) -> None:
    trunk = tiny_trunk(dropout=0.5)
    images = pair_data(pair, trunk, BUDGET, seed=0, augment=None)
    found = feature_data(images, trunk, CPU, cache=tmp_path)
    trunk.eval()
    for side in ("source", "target"):
        for part in ("train", "val"):
            for (rows, labels), (pixels, theirs) in zip(
                found.images_of(side, part), images.images_of(side, part), strict=True
            ):
                with torch.no_grad():
                    torch.testing.assert_close(rows, trunk(pixels), rtol=0, atol=1e-6)
                assert torch.equal(labels, theirs)


def test_a_module_on_features_measures_what_one_on_images_does(pair: Pair) -> None:
    trunk = tiny_trunk().eval()
    images = pair_data(pair, trunk, BUDGET, seed=0, augment=None)
    data = feature_data(images, trunk, CPU, cache=None)
    on_images, on_features = (JTLN(each, 4, 3, Method()) for each in (trunk, ComputedFeatures(trunk)))
    on_features.load_state_dict(on_images.state_dict(), strict=False)
    (rows, _), (pixels, _) = next(data.images_of("target")), next(images.images_of("target"))
    with torch.no_grad():
        for ours, theirs in zip(on_features.eval()(rows), on_images.eval()(pixels), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_another_network_or_size_has_features_of_its_own(pair: Pair, tmp_path: Path) -> None:
    trunk = tiny_trunk()
    data = pair_data(pair, trunk, BUDGET, seed=0, augment=None)
    feature_data(data, trunk, CPU, cache=tmp_path)
    kept = set(tmp_path.rglob("*.f32"))
    feature_data(data, trunk, CPU, cache=tmp_path)
    assert set(tmp_path.rglob("*.f32")) == kept
    before = trunk_digest(trunk)
    with torch.no_grad():
        next(trunk.parameters()).add_(1e-6)
    assert trunk_digest(trunk) != before
    feature_data(data, trunk, CPU, cache=tmp_path)
    assert len(set(tmp_path.rglob("*.f32"))) == 2 * len(kept)


def test_views_of_a_training_image_are_its_own(pair: Pair, tmp_path: Path) -> None:
    """The first view is the image as it is, and the others do not depend on what stands beside it."""
    trunk = tiny_trunk()
    data = pair_data(pair, trunk, BUDGET, seed=0, augment=Augment(shift=2))
    found = feature_data(data, trunk, CPU, cache=tmp_path, views=4)
    views = found.augmented.target.train.rows[found.augmented.target.train.places]  # type: ignore[attr-defined]
    plain = torch.cat([rows for rows, _ in found.images_of("target")])
    torch.testing.assert_close(torch.from_numpy(views[:, 0].copy()), plain)
    assert views.shape == (12, 4, 6)
    assert len({row.tobytes() for row in views[0]}) > 1
    again = feature_data(data, trunk, CPU, cache=None, views=4)
    rows = again.augmented.target.train
    torch.testing.assert_close(torch.from_numpy(rows.rows[rows.places]), torch.from_numpy(views))  # type: ignore[attr-defined]
    batch = next(iter(found.train_dataloader()))[0]["target"][0]
    assert batch.shape == (3, 6)


def test_several_views_are_averaged_in_the_test(pair: Pair, make_trunk: Callable[..., object]) -> None:
    trunk = tiny_trunk()
    data = pair_data(pair, trunk, BUDGET, seed=0, augment=None, test_views="flip")
    found = feature_data(data, trunk, CPU, cache=None)
    (rows, _) = next(iter(found.test_dataloader()[0]))
    (pixels, _) = next(iter(data.test_dataloader()[0]))
    seen, _ = data.on_after_batch_transfer((pixels, torch.zeros(len(pixels))), 0)
    with torch.no_grad():
        expected = trunk.eval()(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)
    assert rows.shape[1] == 2


def test_runs_share_a_trunk_that_others_trained() -> None:
    """It is made once, and what is drawn afterwards is the same; a random trunk is each run's own."""

    def drawn(key: str, pretrained: bool) -> tuple[Trunk, list[float]]:
        def make() -> Trunk:
            trunk = tiny_trunk()
            trunk.pretrained = pretrained
            return trunk

        torch.manual_seed(3)
        return shared_trunk(key, make), torch.rand(2).tolist()

    (first, cold), (again, warm), (other, _) = drawn("a", True), drawn("a", True), drawn("b", True)
    assert again is first
    assert warm == cold
    assert first.digest == trunk_digest(first)
    assert other is not first
    assert drawn("random", False)[0] is not drawn("random", False)[0]
    assert drawn("random", False)[0].digest is None


@pytest.mark.parametrize("silicon", [True, False])
def test_bfloat16_is_for_hardware_that_has_it(monkeypatch: pytest.MonkeyPatch, silicon: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": silicon}, raising=False)
    assert feature_precision("bf16-mixed", CPU) == ("bf16-mixed" if silicon else "32-true")
    assert feature_precision("16-mixed", CPU) == "16-mixed"


def test_features_of_two_precisions_are_kept_apart(pair: Pair, tmp_path: Path) -> None:
    trunk = tiny_trunk()
    data = pair_data(pair, trunk, BUDGET, seed=0, augment=None)
    rough = feature_data(
        data, trunk, CPU, cache=tmp_path, precision="bf16-mixed", context=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    fine = feature_data(data, trunk, CPU, cache=tmp_path)
    assert len(set(tmp_path.rglob("*.f32"))) == 2
    (coarse, _), (exact, _) = next(rough.images_of("target")), next(fine.images_of("target"))
    assert 0 < float((coarse - exact).abs().max()) < 0.05
    assert coarse.dtype == torch.float32
