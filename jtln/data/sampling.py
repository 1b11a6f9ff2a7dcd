"""The choice of labelled and held-out images: class-balanced, seeded and nested.

Every choice is a prefix of one seeded permutation of each class's images, so a larger choice contains a smaller one of
the same seed. No global random state is read or changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jtln.errors import UserError


def class_permutations(labels: Tensor, seed: int, names: Sequence[str] | None = None) -> list[Tensor]:
    """Return the indices of each class's images, each class shuffled by its own stream of ``seed``.

    Args:
        labels: (N,) int64.
        seed: >= 0.
        names: the classes; None means the classes 0..max.
    """
    if seed < 0:
        raise UserError(f"expected a seed of 0 or more, but got {seed}: set seed=0, for instance")
    array = labels.numpy()
    classes = len(names) if names is not None else int(array.max(initial=-1)) + 1
    return [
        torch.from_numpy(np.random.default_rng([seed, label]).permutation(np.flatnonzero(array == label)))
        for label in range(classes)
    ]


def few_shot(labels: Tensor, shots: int | None, seed: int, names: Sequence[str] | None = None) -> Tensor:
    """Choose ``shots`` images of every class; a larger choice contains a smaller one.

    Args:
        labels: (N,) int64.
        shots: images a class, > 0; None takes all.
        seed: >= 0.
        names: the classes' names, for errors.

    Returns:
        (K,) int64, the chosen indices in ascending order.

    Raises:
        UserError: ``shots`` is not positive, or a class has fewer images.
    """
    if shots is None:
        return torch.arange(len(labels))
    if shots < 1:
        raise UserError(f"expected 1 or more labelled images a class, but got {shots}: set dataset.shots=1")
    permutations = class_permutations(labels, seed, names)
    for label, indices in enumerate(permutations):
        if len(indices) < shots:
            raise UserError(
                f"expected at least {shots} images of every class to label, but {_called(label, names)} has "
                f"{len(indices)} (without its validation images): {_fewer('shots', len(indices))}"
            )
    return torch.cat([indices[:shots] for indices in permutations]).sort().values


def share_of_each(labels: Tensor, rate: float | None, seed: int, names: Sequence[str] | None = None) -> Tensor:
    """Choose the rounded share ``rate`` of every class's images, at least one; a larger share contains a smaller one.

    Args:
        labels: (N,) int64.
        rate: in (0, 1]; None takes all.
        seed: >= 0.
        names: the classes' names, for errors.

    Returns:
        (K,) int64, the chosen indices in ascending order.

    Raises:
        UserError: ``rate`` is out of range, or a class has no image.
    """
    if rate is None:
        return torch.arange(len(labels))
    if not 0 < rate <= 1:
        raise UserError(f"expected a share of labelled images in (0, 1], but got {rate}: set dataset.rate=0.15")
    chosen = []
    for label, indices in enumerate(class_permutations(labels, seed, names)):
        if not len(indices):
            raise UserError(
                f"expected images of every class to label, but {_called(label, names)} has none (without its "
                "validation images): add some, or leave the class out of dataset.target_classes"
            )
        chosen.append(indices[: max(math.floor(rate * len(indices) + 0.5), 1)])
    return torch.cat(chosen).sort().values


def stratified_split(
    labels: Tensor,
    seed: int,
    per_class: int | None = None,
    fraction: float | None = None,
    names: Sequence[str] | None = None,
    setting: str = "validation",
) -> tuple[Tensor, Tensor]:
    """Hold out images of every class: either ``per_class`` images or the rounded share ``fraction``.

    Args:
        labels: (N,) int64.
        seed: >= 0.
        per_class: held-out images a class, >= 1, leaving at least one.
        fraction: in (0, 1); every class holds out at least one image and keeps at least one.
        names: the classes' names, for errors.
        setting: the configuration key of ``per_class`` or ``fraction``, for errors.

    Returns:
        The kept indices (K,) and the held-out ones (M,), int64, each in ascending order.

    Raises:
        UserError: not exactly one of ``per_class`` and ``fraction`` is given, it is out of range, or a class
            has too few images.
    """
    if (per_class is None) == (fraction is None):
        raise UserError(f"expected per_class or fraction, but got per_class={per_class}, fraction={fraction}")
    if per_class is not None and per_class < 1:
        raise UserError(f"expected 1 or more held-out images a class, but got {per_class}: set dataset.{setting}=1")
    if fraction is not None and not 0 < fraction < 1:
        raise UserError(
            f"expected a held-out share between 0 and 1, but got {fraction}: set dataset.{setting}=0.2, for instance"
        )
    kept, held = [], []
    for label, indices in enumerate(class_permutations(labels, seed, names)):
        there = len(indices)
        out = per_class if per_class is not None else max(round((fraction or 0) * there), 1)
        if fraction is not None and there > 1:
            out = min(out, there - 1)
        if out >= there:
            raise UserError(
                f"expected more than {out} images of every class, to hold out {out} and keep some, but "
                f"{_called(label, names)} has {there}: "
                f"{_fewer(setting, there - 1 if per_class is not None else 0)}"
            )
        held.append(indices[:out])
        kept.append(indices[out:])
    if not kept:
        raise UserError("expected images to hold some of them out, but got none: check dataset.root")
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


def _fewer(setting: str, most: int) -> str:
    """Return the remedy for a class of too few images."""
    change = f"set dataset.{setting} to at most {most}" if most > 0 else "add images of it"
    return f"{change}, or leave the class out of dataset.target_classes or dataset.source_classes"


def _called(label: int, names: Sequence[str] | None) -> str:
    return f"class {label}" + ("" if names is None else f" ('{names[label]}')")
