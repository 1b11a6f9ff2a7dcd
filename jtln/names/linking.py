"""Linking class names to WordNet synsets: the dataset's own mapping, an ImageNet id in the name, or a lemma."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from jtln.errors import UserError, unknown
from jtln.names.class_set import ClassSet
from jtln.names.senses import order
from jtln.names.spelling import closest, head, read
from jtln.names.wordnet import find_rows, hypernym_chain, name, nouns, resolve, senses

UNKNOWN = ("error", "head")
SLIP = 0.9  # difflib's ratio of two spellings that differ by a slip of the pen
REMEDY = (
    "Give their synsets in a CSV file with the columns class,synset, where a synset is written 'n02084071' or "
    "'dog.n.01': `python -m jtln classes dataset=...` writes one to correct, dataset.links=FILE reads it. In Python: "
    "ClassSet(names, synsets)."
)
HEADS = " Or let names count as what they are probably a kind of, where that is known: cost.unknown_names=head."

MOST_LINES = 20  # of each kind in a warning


class Link(NamedTuple):
    """A class and the synset that stands for it.

    Attributes:
        name: the class's name.
        synset: its WordNet 3.0 id, such as "n02084071".
        how: "given" (the dataset's own mapping), "id" (an ImageNet id in the name), "lemma" (by the name) or "head"
            (by the last word of a name that is unknown as a whole).
        others: the ids of the other senses of the matching lemma, the likeliest first.
        note: empty, or how freely the name was read: "read as 'polar bear'".
    """

    name: str
    synset: str
    how: str
    others: tuple[str, ...] = ()
    note: str = ""


class Unmatched(NamedTuple):
    """A class that no synset was found for.

    Attributes:
        name: the class's name.
        given: the synset that it was given, or the id in its name, where that does not exist; else empty.
        near: lemmas that are spelled like the name, the most alike first.
        heads: the ids of what the name is probably a kind of, the likeliest first: a helmet for "bike_helmet".
    """

    name: str
    given: str = ""
    near: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()


class AmbiguousClassWarning(UserWarning):
    """Class names have several meanings, or were read freely, and the likeliest meaning was taken."""


def link(classes: ClassSet, senses: str = "context", unknown_names: str = "error") -> tuple[Link, ...]:
    """One link for each class, in order.

    A given synset counts most, then an ImageNet id in the name (``n02084071-toy_dog``), then the name as
    :func:`jtln.names.spelling.read` reads it. Where a name has several senses one is taken, and one
    :class:`AmbiguousClassWarning` lists them all.

    Args:
        classes: S classes.
        senses: which of several senses is taken: that which fits the other classes by their "context" (a crane
            among birds is a bird), the most frequent of the likeliest kind to be "pictured" (animals and things before
            people), or simply the "first", which is the most frequent; see :func:`jtln.names.senses.order`.
        unknown_names: "error", or "head": a name that is unknown as a whole is linked to the thing that it names a
            kind of (``bike_helmet`` to the helmet), which the warning tells; without such a thing it is an error, too.

    Raises:
        UserError: a given synset or an id does not exist, or names are unknown; it lists them all.
    """
    if unknown_names not in UNKNOWN:
        raise unknown("treatment of unknown names", unknown_names, UNKNOWN)
    found = link_all(classes, senses)
    missing = [each for each in found if isinstance(each, Unmatched)]
    find_rows(each.given for each in missing if each.given)  # all mistakes in one message
    if lost := [each for each in missing if unknown_names == "error" or not each.heads]:
        told = "".join(f"\n  {each.name}: {suggestion(each)}" for each in lost)
        raise UserError(
            f"expected class names that WordNet 3.0 knows as nouns, but {len(lost)} of {len(found)} are unknown:{told}"
            f"\n{REMEDY}" + (HEADS if unknown_names == "error" and any(each.heads for each in lost) else "")
        )
    links = tuple(
        each if isinstance(each, Link) else Link(each.name, each.heads[0], "head", each.heads[1:]) for each in found
    )
    _warn(links)
    return links


def link_all(classes: ClassSet, senses: str = "context") -> tuple[Link | Unmatched, ...]:
    """What :func:`link` finds for each class, in order, without a warning and without an error for unknown names."""

    def one(index: int, class_name: str) -> Link | Unmatched:
        given = classes.synset(index) or _id(class_name)
        if given:
            if nouns().find(given) is None:
                return Unmatched(class_name, given)
            return Link(class_name, resolve(given), "given" if classes.synset(index) else "id")
        if reading := read(class_name):
            return Link(class_name, reading.senses[0], "lemma", reading.senses[1:], reading.note)
        return Unmatched(class_name, "", tuple(closest(class_name)), head(class_name))

    found = [one(index, class_name) for index, class_name in enumerate(classes)]
    meanings = [(each.synset, *each.others) if isinstance(each, Link) else each.heads for each in found]
    return tuple(
        each._replace(synset=likely[0], others=likely[1:]) if isinstance(each, Link) else each._replace(heads=likely)
        for each, likely in zip(found, order(meanings, senses), strict=True)
    )


def suggestion(each: Unmatched) -> str:
    """What to write in place of an unmatched name, in words."""
    if each.given:
        return f"WordNet 3.0 has no noun synset '{each.given}'"
    near = f"did you mean {' or '.join(map(repr, each.near))}?" if each.near else ""
    kind = f"perhaps a kind of {explain(each.heads[0])}" if each.heads else ""
    return "; ".join(filter(None, (near, kind))) or "nothing is close"


def ideas(each: Unmatched) -> tuple[str, ...]:
    """Synset ids that an unmatched name may stand for: what it is a kind of, and what is spelled alike.

    A slip ("zebbra") counts more than the last word of the name, which counts more than what is a little alike.
    """
    firsts = [likely[0] for likely in order([senses(lemma) for lemma in each.near], "pictured")]
    near = list(zip(each.near, firsts, strict=True))
    joined = each.name.lower().replace(" ", "_").replace("-", "_")
    slips = [first for lemma, first in near if difflib.SequenceMatcher(None, lemma, joined).ratio() >= SLIP]
    return tuple(dict.fromkeys([*slips, *each.heads, *(first for _, first in near)]))


def explain(synset: str) -> str:
    """A sense as people tell it from others: "crane.n.04 (a lifting_device)"."""
    chain = hypernym_chain(synset)
    if len(chain) == 1:
        return name(synset)
    above = name(chain[1]).rsplit(".", 2)[0]
    return f"{name(synset)} ({'an' if above[0] in 'aeiou' else 'a'} {above})"


def _id(class_name: str) -> str | None:
    match = re.search(r"(?<![0-9A-Za-z])n\d{8}(?!\d)", class_name)
    return match[0] if match else None


def _warn(links: Sequence[Link]) -> None:
    ambiguous = [each for each in links if each.others and each.how == "lemma"]
    free = [each for each in links if each.note or each.how == "head"]
    told = []
    if ambiguous:
        lines = _first([_senses_text(each) for each in ambiguous])
        told.append(
            f"{len(ambiguous)} of {len(links)} class names have several meanings in WordNet; the likeliest one was "
            f"taken:{lines}"
        )
    if free:
        lines = _first(
            [
                f"{each.name} -> {explain(each.synset)}: {each.note or 'the kind of thing that it names'}"
                for each in free
            ]
        )
        told.append(f"{len(free)} of {len(links)} class names are not in WordNet as they are:{lines}")
    if told:
        told.append(f"Where that is wrong: {REMEDY}")
        warnings.warn("\n".join(told), AmbiguousClassWarning, stacklevel=3)


def _senses_text(each: Link) -> str:
    return f"{each.name} -> {explain(each.synset)}; others: {', '.join(map(explain, each.others))}"


def _first(lines: Sequence[str]) -> str:
    """The first few lines, each on its own: of hundreds of classes nobody reads them all in a warning."""
    more = f"\n  and {len(lines) - MOST_LINES} more: `python -m jtln classes` shows them all"
    return "".join(f"\n  {line}" for line in lines[:MOST_LINES]) + (more if len(lines) > MOST_LINES else "")
