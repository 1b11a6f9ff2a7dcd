"""The choice of a task's classes among those of a collection: by name, by a branch of the hierarchy, or at random."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jtln.errors import UserError, unknown
from jtln.names.class_set import ClassSet
from jtln.names.wordnet import resolve

BRANCH = "/*"
OVERLAPS = ("drop", "keep")
Wanted = str | int | float | Sequence[str]


def select(classes: ClassSet, wanted: Wanted, setting: str, seed: Sequence[int], free: Sequence[str]) -> list[str]:
    """Return the names of the classes that ``wanted`` selects.

    Args:
        classes: all classes of a collection.
        wanted: "all" or "rest" (every free class); names, of which "Boeing/*" stands for every class below the node
            Boeing at any level of the collection's hierarchy, and "wide body/two engines/*" for every class below two
            consecutive nodes; a whole number, or a share in (0, 1), of the free classes, drawn by ``seed``.
        setting: the configuration key, for errors.
        seed: of the draw; a larger number of classes contains a smaller one.
        free: the classes that may be drawn, in the order of ``classes``.

    Returns:
        The names in the given order, each once; drawn ones in the order of ``classes``.

    Raises:
        UserError: a name or branch is unknown, or a number is out of range.
    """
    if wanted in ("all", "rest"):
        return list(free)
    if isinstance(wanted, bool) or wanted is None:
        raise UserError(
            f"expected names, a number or a share of classes for dataset.{setting}, but got {wanted!r}: "
            f"set dataset.{setting}=[A,B], for instance"
        )
    if isinstance(wanted, int | float):
        return _draw(wanted, setting, seed, free)
    given = [wanted] if isinstance(wanted, str) else [str(each) for each in wanted]
    names = [name for each in given for name in _named(classes, each)]
    return list(dict.fromkeys(names))


def folded(name: str) -> str:
    """Return a class name without case, spaces, punctuation, Caltech-256's "-101", and a leading number or id."""
    bare = re.sub(r"^(n\d{8}|\d+)[._\-\s]+(?=[^\W\d])|-101$", "", name.strip())
    return re.sub(r"[\W_]+", "", bare.casefold()) or name


def in_both(source: ClassSet, target: ClassSet) -> tuple[str, ...]:
    """Return the source classes that are also target classes, by their synset or their folded name.

    Only given synsets and ImageNet ids in names count, because a synset found by name adds nothing to the name.
    """
    synsets = {synset for index in range(len(target)) if (synset := _synset(target, index))}
    names = {folded(name) for name in target}
    return tuple(
        name for index, name in enumerate(source) if folded(name) in names or _synset(source, index) in synsets
    )


class SourceClasses(NamedTuple):
    """The classes of a source task."""

    classes: ClassSet
    dropped: tuple[str, ...]  # classes left out because they are target classes


def source_classes(source: ClassSet, target: ClassSet, wanted: Wanted, overlap: str | None, seed: int) -> SourceClasses:
    """Return the classes of the source task.

    Args:
        source: all classes of the source's collection.
        target: the target's classes.
        wanted: as :func:`select` takes it.
        overlap: "drop" or "keep" the classes of another collection that are also target classes; None: source and
            target come from one collection and share no class.
        seed: of the draw.

    Raises:
        UserError: ``overlap`` is unknown, or the source has fewer than two classes left.
    """
    if overlap not in (None, *OVERLAPS):
        raise unknown("dataset.overlap", overlap, OVERLAPS)
    taken: set[str] = set()
    if overlap is None:
        taken = set(target)
    elif overlap == "drop":
        taken = set(in_both(source, target))
    free = [name for name in source if name not in taken]
    if len(free) < 2:
        raise UserError(
            f"expected at least two classes for the source besides the {len(target)} target classes, but got "
            f"{len(free)}: name fewer in dataset.target_classes (0.5 draws half of them), or give the source "
            "another collection: dataset/source=FILE"
        )
    chosen = select(source, wanted, "source_classes", (seed, 1), free)
    dropped: tuple[str, ...] = ()
    if overlap is not None:
        meant = source.names if wanted in ("all", "rest") else chosen
        dropped = tuple(name for name in meant if name in taken)
        chosen = [name for name in chosen if name not in taken]
    if not chosen:
        raise UserError(
            "expected source classes that are no target classes, but every one of dataset.source_classes is: "
            "name others, or keep them with dataset.overlap=keep"
        )
    return SourceClasses(source.subset(chosen), dropped)


def _draw(wanted: float, setting: str, seed: Sequence[int], free: Sequence[str]) -> list[str]:
    count = wanted if isinstance(wanted, int) else round(wanted * len(free))
    if not (0 < wanted < 1 if isinstance(wanted, float) else 2 <= wanted <= len(free)) or count < 2:
        raise UserError(
            f"expected 2 to {len(free)} classes, or a share of them between 0 and 1, but got {wanted}: "
            f"set dataset.{setting}=0.5, or list their names"
        )
    drawn = set(np.random.default_rng(list(seed)).permutation(len(free))[:count].tolist())
    return [name for index, name in enumerate(free) if index in drawn]


def _named(classes: ClassSet, wanted: str) -> list[str]:
    """Return the class of that name, or those below a branch of the hierarchy, which may begin at any level."""
    if wanted in classes.names or not wanted.endswith(BRANCH):
        return [classes.names[classes.index(wanted)]]
    branch = tuple(part.strip() for part in wanted.removesuffix(BRANCH).split("/"))
    paths = [classes.path(index) or () for index in range(len(classes))]
    below = [name for name, path in zip(classes, paths, strict=True) if branch in _runs(path, len(branch))]
    if not below:
        length = min(len(branch), max(map(len, paths)))
        if not length:
            raise UserError(f"expected the names of classes, as there is no hierarchy of them, but got '{wanted}'")
        branches = dict.fromkeys("/".join(run) + BRANCH for path in paths for run in _runs(path, length))
        raise unknown("branch of classes", wanted, branches)
    return below


def _runs(path: tuple[str, ...], length: int) -> list[tuple[str, ...]]:
    """Return all runs of ``length`` consecutive parts of the path."""
    return [path[start : start + length] for start in range(len(path) - length + 1)]


def _synset(classes: ClassSet, index: int) -> str | None:
    """Return the class's WordNet 3.0 id."""
    if synset := classes.synset(index):
        return resolve(synset)
    match = re.search(r"(?<![0-9A-Za-z])n\d{8}(?!\d)", classes.names[index])
    return match[0] if match else None
