import itertools
import random

import numpy as np
import pytest
import torch

from jtln.data.sampling import few_shot, share_of_each, stratified_split
from jtln.errors import UserError

LABELS = torch.tensor([0, 1, 2, 2, 1, 0] * 10 + [2] * 7)  # 20, 20 and 27 images


def test_few_shot_is_balanced_nested_and_seeded() -> None:
    smaller = few_shot(LABELS, 5, seed=3)
    larger = few_shot(LABELS, 10, seed=3)
    assert LABELS[smaller].bincount().tolist() == [5, 5, 5]
    assert LABELS[larger].bincount().tolist() == [10, 10, 10]
    assert set(smaller.tolist()) < set(larger.tolist())
    assert torch.equal(larger, few_shot(LABELS, 10, seed=3))
    assert not torch.equal(larger, few_shot(LABELS, 10, seed=4))
    assert few_shot(LABELS, None, seed=3).tolist() == list(range(67))


def test_a_share_of_each_class_is_nested_and_seeded() -> None:
    ladder = [share_of_each(LABELS, rate, seed=3) for rate in (0.01, 0.1, 0.15, 0.5, 1.0)]
    for smaller, larger in itertools.pairwise(ladder):
        assert set(smaller.tolist()) < set(larger.tolist())
    counts = [LABELS[chosen].bincount().tolist() for chosen in ladder]
    assert counts == [[1, 1, 1], [2, 2, 3], [3, 3, 4], [10, 10, 14], [20, 20, 27]]  # of 20, 20 and 27
    assert set(few_shot(LABELS, 2, seed=3).tolist()) < set(ladder[2].tolist()) < set(few_shot(LABELS, 4, 3).tolist())
    assert not torch.equal(ladder[2], share_of_each(LABELS, 0.15, seed=4))
    assert torch.equal(share_of_each(LABELS, None, seed=3), ladder[-1])


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.1])
def test_a_share_is_one(rate: float) -> None:
    with pytest.raises(UserError, match=rf"\(0, 1\].*{rate}"):
        share_of_each(LABELS, rate, seed=0)
    with pytest.raises(UserError, match=r"class 3 \('yak'\)"):
        share_of_each(LABELS, 0.5, seed=0, names=["cat", "dog", "owl", "yak"])


def test_every_image_can_be_chosen() -> None:
    seen = {index for seed in range(200) for index in few_shot(LABELS, 2, seed).tolist()}
    assert seen == set(range(67))


def test_global_random_state_is_left_alone() -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    few_shot(LABELS, 5, seed=3)
    stratified_split(LABELS, seed=3, per_class=2)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after


def test_split_by_number() -> None:
    kept, held = stratified_split(LABELS, seed=0, per_class=4)
    assert LABELS[held].bincount().tolist() == [4, 4, 4]
    assert sorted(kept.tolist() + held.tolist()) == list(range(67))


def test_split_by_fraction() -> None:
    kept, held = stratified_split(LABELS, seed=0, fraction=0.15)
    assert LABELS[held].bincount().tolist() == [3, 3, 4]
    assert sorted(kept.tolist() + held.tolist()) == list(range(67))
    pairs = torch.tensor([0, 0, 1, 1])
    assert pairs[stratified_split(pairs, seed=0, fraction=0.01)[1]].tolist() == [0, 1]
    assert pairs[stratified_split(pairs, seed=0, fraction=0.99)[0]].tolist() == [0, 1]


def test_too_few_images_name_the_class_and_the_way_out() -> None:
    names = ["cat", "dog", "owl"]
    with pytest.raises(UserError, match=r"21 .*class 0 \('cat'\).*shots.* 20"):
        few_shot(LABELS, 21, seed=0, names=names)
    with pytest.raises(UserError, match=r"class 3 \('yak'\).* 0"):
        few_shot(LABELS, 1, seed=0, names=[*names, "yak"])
    with pytest.raises(UserError, match=r"class 0 .*20.*validation.* 19"):
        stratified_split(LABELS, seed=0, per_class=20)
    with pytest.raises(UserError, match=r"class 1 .*1"):
        stratified_split(torch.tensor([0, 0, 1]), seed=0, fraction=0.5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"per_class": 1, "fraction": 0.5}, {"per_class": 0}, {"fraction": 1.0}, {"fraction": 0.0}],
)
def test_split_needs_one_sensible_size(settings: dict) -> None:
    with pytest.raises(UserError, match="expected"):
        stratified_split(LABELS, seed=0, **settings)


def test_senseless_numbers() -> None:
    with pytest.raises(UserError, match=r"got 0"):
        few_shot(LABELS, 0, seed=0)
    with pytest.raises(UserError, match=r"seed.*-1"):
        few_shot(LABELS, 1, seed=-1)
