"""The cache of pre-trained trunks: what its key depends on, and what it survives."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny import CPU
from torch import Tensor

from jtln.data.category_pair import CategoryPair
from jtln.data.collections.fashion import SOURCE, TARGET, Fashion
from jtln.data.collections.pictograms import Pictograms
from jtln.data.images import ArrayImages
from jtln.data.pairs import Pair, PairSpec
from jtln.data.transforms import Augment
from jtln.errors import UserError
from jtln.module import Optimization
from jtln.schedules import Constant, Cosine
from jtln.temperature import fit_temperature
from jtln.training import pretraining as module_under_test
from jtln.training.pretraining import Pretrained, Pretraining, cache_key, fit_source_head, pretrain
from jtln.training.trainer import Budget
from jtln.trunks.alexnet import alexnet
from jtln.trunks.base import Trunk

ADAMW = Optimization(partial(torch.optim.AdamW, lr=1e-2), 1.0, Cosine())
SETTINGS = Pretraining(Budget(2, 3, 8, 1), 0, ADAMW)


@pytest.fixture
def run(tiny: PairSpec, make_trunk: Callable[..., Trunk], tmp_path: Path) -> Callable[..., Pretrained]:
    def pretrained(cache: Path | None = tmp_path / "cache", trunk: Callable[[], Trunk] | None = None) -> Pretrained:
        return pretrain(
            tiny.load(), trunk or partial(make_trunk, 0.3), SETTINGS, CPU, augment=Augment(), cache=cache, depends={}
        )

    return pretrained


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_the_second_call_comes_from_the_cache(run: Callable[..., Pretrained], monkeypatch: Any) -> None:
    first = run()
    monkeypatch.setattr(module_under_test, "make_trainer", None)  # training again would fail
    second = run()
    assert (first.cached, second.cached) == (False, True)
    assert first.key == second.key
    assert first.accuracy == second.accuracy
    assert same(first.state, second.state)


def test_without_a_cache_it_is_trained_again_to_the_same_weights(
    run: Callable[..., Pretrained], tmp_path: Path
) -> None:
    first = run(cache=None)
    torch.manual_seed(99)  # what was drawn before has no influence
    second = run(cache=None)
    assert not second.cached
    assert same(first.state, second.state)
    assert not files(tmp_path)


def test_it_learns_and_hands_over_trunk_and_source_head(
    run: Callable[..., Pretrained], tiny: PairSpec, make_trunk: Callable[..., Trunk]
) -> None:
    pretrained = run()
    assert {name.partition(".")[0] for name in pretrained.state} == {"trunk", "source_head"}
    torch.manual_seed(SETTINGS.seed)
    start = {f"trunk.{name}": value for name, value in make_trunk().state_dict().items()}
    assert not any(torch.equal(pretrained.state[name], value) for name, value in start.items())
    trunk, head = make_trunk(), torch.nn.Linear(6, 4)
    pretrained.load_into(trunk, head)
    state = {f"trunk.{name}": value for name, value in trunk.state_dict().items()}
    state |= {f"source_head.{name}": value for name, value in head.state_dict().items()}
    assert same(state, pretrained.state)


@pytest.mark.parametrize("left", [0, 1, 100, 0.5, 0.999, "not a checkpoint", {"state": {}}])
def test_a_broken_file_is_trained_again_and_replaced(left: Any, run: Callable[..., Pretrained], tmp_path: Path) -> None:
    first = run()
    (path,) = files(tmp_path / "cache")
    whole = path.read_bytes()
    if isinstance(left, dict):
        torch.save(left, path)
    else:
        path.write_bytes(
            left.encode() if isinstance(left, str) else whole[: int(left * len(whole)) if left < 1 else left]
        )
    with pytest.warns(UserWarning, match=f"cached trunk .*{path.name} cannot be read and is trained again"):
        second = run()
    assert not second.cached
    assert same(first.state, second.state)
    assert run().cached
    assert files(tmp_path / "cache") == [path]


def test_a_reader_never_sees_half_a_file(run: Callable[..., Pretrained], tmp_path: Path, monkeypatch: Any) -> None:
    """A failing write leaves what was there before, and no litter; what was trained is used all the same."""

    def fails(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.warns(UserWarning, match=r"the pre-trained trunk cannot be kept .* No space left.*cache=DIR"):
        assert run().state
    assert not files(tmp_path / "cache")


def test_the_file_appears_under_its_name_only_when_it_is_whole(
    run: Callable[..., Pretrained], monkeypatch: Any
) -> None:
    moved = []

    def replace(temporary: str, path: Path) -> None:
        assert not path.exists()
        moved.append(torch.load(temporary, weights_only=True).keys())
        os.rename(temporary, path)

    monkeypatch.setattr("jtln.storage.os.replace", replace)
    run()
    assert moved == [{"state", "accuracy"}]


def test_key_follows_everything_that_the_weights_depend_on(tiny: PairSpec, make_trunk: Callable[..., Trunk]) -> None:
    pair = tiny.load()
    images = pair.source.train.__getitems__(list(range(len(pair.source.train))))
    changed = images[0].clone()
    changed[3, 0, 1, 2] ^= 1  # one pixel by one grey level

    def other_images(pixels: Tensor, labels: Tensor) -> Pair:
        train = ArrayImages(pixels, labels, pair.source.train.names)
        return dataclasses.replace(pair, source=dataclasses.replace(pair.source, train=train))

    def key(
        pair: Pair = pair,
        trunk: Trunk | None = None,
        augment: Augment | None = Augment(),  # noqa: B008
        depends: dict[str, Any] | None = None,
        **settings: Any,
    ) -> str:
        depends = {"optimizer": "1e-3", "trunk": {"width": 0.25}, "weights": "none"} | (depends or {})
        return cache_key(pair, trunk or make_trunk(), dataclasses.replace(SETTINGS, **settings), augment, depends)

    renamed = dataclasses.replace(pair.source, classes=type(pair.source.classes)(["a", "b", "c", "d"]))
    variants = {
        "as it was": key(),
        "a pixel": key(other_images(changed, images[1])),
        "a label": key(other_images(images[0], images[1].flip(0))),
        "class names": key(dataclasses.replace(pair, source=renamed)),
        "image size": key(dataclasses.replace(pair, image_size=9)),
        "trunk": key(trunk=alexnet(32, width=0.05)),
        "width": key(depends={"trunk": {"width": 0.5}}),
        "weights": key(depends={"weights": "0123"}),
        "lr": key(depends={"optimizer": "1e-2"}),
        "seed": key(seed=1),
        "epochs": key(budget=Budget(3, 3, 8, 1)),
        "batch size": key(budget=Budget(2, 3, 4, 1)),
        "schedule": key(optimization=dataclasses.replace(ADAMW, schedule=Constant())),
        "warmup": key(optimization=dataclasses.replace(ADAMW, schedule=Cosine(warmup=0.1))),
        "no augmentation": key(augment=None),
        "no flip": key(augment=Augment(flip=False)),
        "shift": key(augment=Augment(shift=3)),
    }
    keys = list(variants.values())
    assert not [name for name, value in variants.items() if keys.count(value) > 1]
    assert key() == variants["as it was"]


def fashion(**settings: Any) -> CategoryPair:
    return CategoryPair(
        "fashion", Fashion(), source_classes=SOURCE, target_classes=TARGET, validation=20, image_size=28, **settings
    )


@pytest.mark.parametrize("dataset", [fashion, Pictograms])
def test_key_is_one_for_all_seeds_and_shots_of_a_sweep(dataset: Any, make_trunk: Callable[..., Trunk]) -> None:
    pairs = [dataset(seed=0, shots=1).load(), dataset(seed=1, shots=2).load()]
    assert pairs[0].target.train.fingerprint() != pairs[1].target.train.fingerprint()
    keys = {cache_key(pair, make_trunk(), SETTINGS, None, {}) for pair in pairs}
    assert len(keys) == 1
    assert cache_key(dataset(split_seed=1).load(), make_trunk(), SETTINGS, None, {}) not in keys


def test_accuracy_is_of_the_source_validation_part(run: Callable[..., Pretrained], tiny: PairSpec) -> None:
    assert math.isclose(run().accuracy * len(tiny.load().source.val) % 1, 0, abs_tol=1e-5)


def test_two_runs_at_once_train_the_trunk_once(run: Callable[..., Pretrained], monkeypatch: Any) -> None:
    """The second waits for the lock that the first holds while it trains, and takes what it made."""
    trained, train = [], module_under_test._train

    def slow(*arguments: Any) -> Pretrained:
        trained.append(threading.current_thread().name)
        time.sleep(0.5)
        return train(*arguments)

    monkeypatch.setattr(module_under_test, "_train", slow)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # which only the main thread may set
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda _: run(), range(2)))
    assert len(trained) == 1
    assert sorted(each.cached for each in results) == [False, True]
    assert same(results[0].state, results[1].state)


def test_a_process_without_the_trunk_that_the_first_one_found(
    run: Callable[..., Pretrained], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = run(cache=None).key
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("JTLN_DECISION", f"pretrained-{key}:1")
    with pytest.raises(UserError, match="cache=DIR"):
        run()


@pytest.mark.parametrize(
    ("images", "steps", "batch"), [(40, 75, 40), (4800, 75, 64), (4801, 76, 64), (10**6, 1000, 64)]
)
def test_an_epoch_is_a_pass_over_the_source_within_limits(images: int, steps: int, batch: int) -> None:
    settings = Pretraining(Budget(5, 1, 64, 1), 0, ADAMW, passes=True)
    budget = settings.fitted(images).budget
    assert (budget.epochs, budget.steps_per_epoch, budget.source_batch_size) == (5, steps, batch)
    assert dataclasses.replace(settings, passes=False).fitted(images).budget.steps_per_epoch == 1


class TwoBatches:
    """Features of 60 source images in two batches, and of 20 that validate."""

    device = "cpu"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        centres = 2 * torch.randn(3, 8, generator=generator)
        self.labels = torch.arange(80) % 3
        self.rows = centres[self.labels] + 2 * torch.randn(80, 8, generator=generator)

    def of(self, side: str, part: str = "train", at_most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        assert side == "source"
        for each in (slice(0, 25), slice(25, 60)) if part == "train" else (slice(60, 80),):
            yield self.rows[each], self.labels[each]


def test_the_source_head_is_scikit_learns_at_the_best_temperature(monkeypatch: Any) -> None:
    monkeypatch.setattr(module_under_test, "SOURCE_TOLERANCE", 1e-8)
    features, head = TwoBatches(), torch.nn.Linear(8, 3)
    assert fit_source_head(head, features) == 60  # type: ignore[arg-type]
    rows, labels = features.rows.double(), features.labels
    scale = 5 / float(rows[:60].norm(dim=1).mean())
    x = np.concatenate([scale * rows.numpy(), np.full((80, 1), 30**-0.5)], axis=1)  # the bias has |b|^2 / 2
    theirs = LogisticRegression(C=30, fit_intercept=False, tol=1e-10, max_iter=5000).fit(x[:60], labels[:60].numpy())
    logits = torch.from_numpy(x[60:] @ theirs.coef_.T)
    tau = fit_temperature([(logits, labels[60:])]).temperature
    np.testing.assert_allclose(head.weight.detach() * tau / scale, theirs.coef_[:, :-1], atol=5e-3)
    np.testing.assert_allclose(head(features.rows[60:]).detach().softmax(1), (logits / tau).softmax(1), atol=5e-3)


def test_a_source_without_images_has_no_head_to_fit(monkeypatch: Any) -> None:
    features = TwoBatches()
    monkeypatch.setattr(features, "of", lambda *_, **__: iter(()))
    with pytest.raises(UserError, match="pretrain=head, but got none"):
        fit_source_head(torch.nn.Linear(8, 3), features)  # type: ignore[arg-type]
