"""Linking class names to WordNet synsets: the dataset's own mapping, an ImageNet id in the name, or a lemma."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jtln.errors import UserError, unknown
from jtln.names.class_set import ClassSet
from jtln.names.senses import order
from jtln.names.spelling import closest, head, read, slips
from jtln.names.wordnet import find_rows, hypernym_chain, name, nouns, resolve
from jtln.names.wordnet import senses as meanings

UNKNOWN = ("neutral", "error")
REMEDY = (
    "Give their synsets in a CSV file with the columns class,synset, where a synset is written 'n02084071' or "
    "'dog.n.01': `python -m jtln classes dataset=...` writes one to correct, dataset.links=FILE reads it. In Python: "
    "ClassSet(names, synsets)."
)

NEAR = 3  # suggested lemmas for an unknown name
MOST_LINES = 20  # lines of each kind in a warning


class Link(NamedTuple):
    """A class and the synset that stands for it.

    Attributes:
        name: the class's name.
        synset: its WordNet 3.0 id, such as "n02084071".
        how: "given" (the dataset's own mapping), "id" (an ImageNet id in the name), "lemma" (by the name), "slip" (by
            a lemma of which the name is a misspelling) or "head" (by the head noun of an unknown compound).
        others: the ids of the other senses of the matching lemma, the most probable first.
        note: empty, or the interpretation that was needed: "read as 'polar bear'".
    """

    name: str
    synset: str
    how: str
    others: tuple[str, ...] = ()
    note: str = ""


class Unmatched(NamedTuple):
    """A class without a synset.

    Attributes:
        name: the class's name.
        given: the given synset, or the id in the name, if WordNet lacks it; otherwise empty.
        near: lemmas with a similar spelling, the most similar first.
    """

    name: str
    given: str = ""
    near: tuple[str, ...] = ()


Found = Link | Unmatched


class AmbiguousClassWarning(UserWarning):
    """Some class names have several senses, are not in WordNet as they are, or are unknown."""


def link(
    tasks: Mapping[str, ClassSet], senses: str = "context", unknown_names: str = "neutral"
) -> dict[str, tuple[Found, ...]]:
    """Link the classes of every task to synsets, as :func:`link_all` does, in their order.

    One :class:`AmbiguousClassWarning` for all tasks lists the links of names that have several senses or are not in
    WordNet as they are, and the unknown names.

    Args:
        tasks: class sets by the name of their task, "source" and "target", which appears in messages.
        senses: the choice among several senses: "context" fits the task's other classes (a crane among birds is a
            bird), "pictured" prefers what images show (animals and things before people), and "first" is the most
            frequent; see :func:`jtln.names.senses.order`.
        unknown_names: "neutral" returns unknown names as :class:`Unmatched`; "error" raises.

    Raises:
        UserError: a given synset or an id does not exist, or names are unknown and ``unknown_names`` is "error"; the
            message lists those of all tasks.
    """
    if unknown_names not in UNKNOWN:
        raise unknown("treatment of unknown names", unknown_names, UNKNOWN)
    found = {task: link_all(classes, senses) for task, classes in tasks.items()}
    everything = [(task, each) for task, links in found.items() for each in links]
    missing = [(task, each) for task, each in everything if isinstance(each, Unmatched)]
    find_rows(each.given for _, each in missing if each.given)  # raises one error for all of them
    if missing and unknown_names == "error":
        lines = "".join(f"\n  {task} {each.name}: {suggestion(each)}" for task, each in missing)
        raise UserError(
            f"expected class names that WordNet 3.0 knows as nouns, but {len(missing)} of {len(everything)} are "
            f"unknown:{lines}\n{REMEDY}"
        )
    _warn([each for _, each in everything if isinstance(each, Link)], missing)
    return found


@functools.lru_cache(maxsize=8)  # A study links the same classes for many runs in one process.
def link_all(classes: ClassSet, senses: str = "context") -> tuple[Found, ...]:
    """Find a synset for each class, in order, without a warning and without an error for unknown names.

    The first rule with a match applies:

    1. a given synset;
    2. an ImageNet id in the name (``n02084071-toy_dog``);
    3. the name, as :func:`jtln.names.spelling.read` interprets it;
    4. a lemma of which the name is a misspelling (``water_lilly``), see :func:`jtln.names.spelling.slips`;
    5. the head noun of a compound (``bike_helmet``: a helmet), see :func:`jtln.names.spelling.head`.

    Measured on the reviewed tables in jtln/assets, without aircraft, cars and birds: rule 5 links 136 names, 44 % of
    them to the table's synset, at a mean path similarity of 0.56. Rule 4 links 12 names (58 %, 0.65).
    """
    slipped: dict[str, list[str]] = {}  # name -> lemmas

    def one(index: int, class_name: str) -> tuple[Found, tuple[str, ...]]:
        """Return the class with its first sense, and all its senses."""
        given = classes.synset(index) or _id(class_name)
        if given:
            if nouns().find(given) is None:
                return Unmatched(class_name, given), ()
            return Link(class_name, resolve(given), "given" if classes.synset(index) else "id"), (resolve(given),)
        if reading := read(class_name):
            return Link(class_name, reading.senses[0], "lemma", (), reading.note), reading.senses
        near = closest(class_name)
        if lemmas := slips(class_name, near):
            slipped[class_name] = lemmas
            meant = tuple(dict.fromkeys(sense for lemma in lemmas for sense in meanings(lemma)))
            return Link(class_name, meant[0], "slip"), meant
        if meant := head(class_name):
            return Link(class_name, meant[0], "head", (), "what it names a kind of"), meant
        return Unmatched(class_name, "", tuple(near[:NEAR])), ()

    found = [one(index, class_name) for index, class_name in enumerate(classes)]
    links = []
    for (each, _), likely in zip(found, order([meant for _, meant in found], senses), strict=True):
        if isinstance(each, Link):
            each = each._replace(synset=likely[0], others=likely[1:])
            if each.how == "slip":
                lemma = next(lemma for lemma in slipped[each.name] if each.synset in meanings(lemma))
                each = each._replace(note=f"spelled like '{lemma.replace('_', ' ')}'")
        links.append(each)
    return tuple(links)


def suggestion(each: Unmatched) -> str:
    """Return a suggestion for an unmatched name, as text."""
    if each.given:
        return f"WordNet 3.0 has no noun synset '{each.given}'"
    return f"did you mean {' or '.join(map(repr, each.near))}?" if each.near else "nothing is close"


def ideas(each: Unmatched) -> tuple[str, ...]:
    """Return candidate synsets of an unmatched name: the most probable one of each lemma with a similar spelling."""
    return tuple(dict.fromkeys(likely[0] for likely in order([meanings(lemma) for lemma in each.near], "pictured")))


def explain(synset: str) -> str:
    """Return a sense's name and its hypernym: "crane.n.04 (a lifting_device)"."""
    chain = hypernym_chain(synset)
    if len(chain) == 1:
        return name(synset)
    above = name(chain[1]).rsplit(".", 2)[0]
    return f"{name(synset)} ({'an' if above[0] in 'aeiou' else 'a'} {above})"


def _id(class_name: str) -> str | None:
    match = re.search(r"(?<![0-9A-Za-z])n\d{8}(?!\d)", class_name)
    return match[0] if match else None


def _warn(links: Sequence[Link], missing: Sequence[tuple[str, Unmatched]]) -> None:
    """Issue one warning about links that may be wrong; ``missing`` holds pairs of a task's name and a class."""
    ambiguous = [each for each in links if each.others and each.how == "lemma"]
    free = [each for each in links if each.note]
    count = len(links) + len(missing)
    parts = []
    if ambiguous:
        parts.append(
            f"{len(ambiguous)} of {count} class names have several meanings in WordNet; the most probable one is used:"
            + _first([_senses_text(each) for each in ambiguous])
        )
    if free:
        parts.append(
            f"{len(free)} of {count} class names are not in WordNet as they are:"
            + _first([f"{each.name} -> {explain(each.synset)}: {each.note}" for each in free])
        )
    if missing:
        parts.append(
            f"{len(missing)} of {count} class names are unknown to WordNet, so that the cost is neutral for these "
            "classes:" + _first([f"{task} {each.name}: {suggestion(each)}" for task, each in missing])
        )
    if parts:
        parts.append(f"To correct links: {REMEDY}")
        warnings.warn("\n".join(parts), AmbiguousClassWarning, stacklevel=3)


def _senses_text(each: Link) -> str:
    return f"{each.name} -> {explain(each.synset)}; others: {', '.join(map(explain, each.others))}"


def _first(lines: Sequence[str]) -> str:
    """Return the first ``MOST_LINES`` lines, each on its own, and the number of the others."""
    more = f"\n  and {len(lines) - MOST_LINES} more: `python -m jtln classes` lists all"
    return "".join(f"\n  {line}" for line in lines[:MOST_LINES]) + (more if len(lines) > MOST_LINES else "")
