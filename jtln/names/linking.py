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

NEAR = 3  # lemmas that are suggested for an unknown name
MOST_LINES = 20  # of each kind in a warning


class Link(NamedTuple):
    """A class and the synset that stands for it.

    Attributes:
        name: the class's name.
        synset: its WordNet 3.0 id, such as "n02084071".
        how: "given" (the dataset's own mapping), "id" (an ImageNet id in the name), "lemma" (by the name), "slip" (by
            a lemma that the name is one slip of the pen away from) or "head" (by what an unknown name is a kind of).
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
    """

    name: str
    given: str = ""
    near: tuple[str, ...] = ()


Found = Link | Unmatched


class AmbiguousClassWarning(UserWarning):
    """Class names have several meanings, were read freely, or are unknown."""


def link(
    tasks: Mapping[str, ClassSet], senses: str = "context", unknown_names: str = "neutral"
) -> dict[str, tuple[Found, ...]]:
    """Link the classes of every task to synsets, as :func:`link_all` does; the classes of each in their order.

    One :class:`AmbiguousClassWarning` for all tasks lists how names were linked that have several senses or are not in
    WordNet as they are, and the names that stay unknown.

    Args:
        tasks: class sets by the name of their task, which stands in messages: "source" and "target".
        senses: which of several senses is taken: that which fits the task's other classes by their "context" (a crane
            among birds is a bird), the most frequent of the likeliest kind to be "pictured" (animals and things before
            people), or simply the "first", which is the most frequent; see :func:`jtln.names.senses.order`.
        unknown_names: "neutral" returns what stays unknown as :class:`Unmatched`; "error" raises.

    Raises:
        UserError: a given synset or an id does not exist, or names are unknown and ``unknown_names`` is "error"; it
            lists those of all tasks.
    """
    if unknown_names not in UNKNOWN:
        raise unknown("treatment of unknown names", unknown_names, UNKNOWN)
    found = {task: link_all(classes, senses) for task, classes in tasks.items()}
    everything = [(task, each) for task, links in found.items() for each in links]
    missing = [(task, each) for task, each in everything if isinstance(each, Unmatched)]
    find_rows(each.given for _, each in missing if each.given)  # all mistakes in one message
    if missing and unknown_names == "error":
        lines = "".join(f"\n  {task} {each.name}: {suggestion(each)}" for task, each in missing)
        raise UserError(
            f"expected class names that WordNet 3.0 knows as nouns, but {len(missing)} of {len(everything)} are "
            f"unknown:{lines}\n{REMEDY}"
        )
    _warn([each for _, each in everything if isinstance(each, Link)], missing)
    return found


@functools.lru_cache(maxsize=8)  # a study makes many runs of the same classes in one process
def link_all(classes: ClassSet, senses: str = "context") -> tuple[Found, ...]:
    """Find a synset for each class, in order, without a warning and without an error for unknown names.

    The first of these that WordNet knows:

    1. a given synset;
    2. an ImageNet id in the name (``n02084071-toy_dog``);
    3. the name, as :func:`jtln.names.spelling.read` reads it;
    4. a lemma that the name is a slip of the pen away from (``water_lilly``), see :func:`jtln.names.spelling.slips`;
    5. what the name is a kind of (``bike_helmet``: a helmet), see :func:`jtln.names.spelling.head`.

    By the tables that people reviewed in jtln/assets, without aircraft, cars and birds: the last rule links 136 names,
    44 % of them to the table's synset, with a mean path similarity to it of 0.56. Rule 4 links 12, 58 % and 0.65.
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
    """Synset ids that an unmatched name may stand for: the likeliest of each lemma that is spelled alike."""
    return tuple(dict.fromkeys(likely[0] for likely in order([meanings(lemma) for lemma in each.near], "pictured")))


def explain(synset: str) -> str:
    """Return a sense's name and what it is a kind of: "crane.n.04 (a lifting_device)"."""
    chain = hypernym_chain(synset)
    if len(chain) == 1:
        return name(synset)
    above = name(chain[1]).rsplit(".", 2)[0]
    return f"{name(synset)} ({'an' if above[0] in 'aeiou' else 'a'} {above})"


def _id(class_name: str) -> str | None:
    match = re.search(r"(?<![0-9A-Za-z])n\d{8}(?!\d)", class_name)
    return match[0] if match else None


def _warn(links: Sequence[Link], missing: Sequence[tuple[str, Unmatched]]) -> None:
    """One warning about what may be wrong; ``missing`` has the names of tasks, too."""
    ambiguous = [each for each in links if each.others and each.how == "lemma"]
    free = [each for each in links if each.note]
    count = len(links) + len(missing)
    parts = []
    if ambiguous:
        parts.append(
            f"{len(ambiguous)} of {count} class names have several meanings in WordNet; the likeliest one was taken:"
            + _first([_senses_text(each) for each in ambiguous])
        )
    if free:
        parts.append(
            f"{len(free)} of {count} class names are not in WordNet as they are:"
            + _first([f"{each.name} -> {explain(each.synset)}: {each.note}" for each in free])
        )
    if missing:
        parts.append(
            f"{len(missing)} of {count} class names are unknown to WordNet, and the cost has no knowledge of these "
            "classes:" + _first([f"{task} {each.name}: {suggestion(each)}" for task, each in missing])
        )
    if parts:
        parts.append(f"Where that is wrong: {REMEDY}")
        warnings.warn("\n".join(parts), AmbiguousClassWarning, stacklevel=3)


def _senses_text(each: Link) -> str:
    return f"{each.name} -> {explain(each.synset)}; others: {', '.join(map(explain, each.others))}"


def _first(lines: Sequence[str]) -> str:
    """Return the first few lines, each on its own: nobody reads hundreds of them in a warning."""
    more = f"\n  and {len(lines) - MOST_LINES} more: `python -m jtln classes` shows them all"
    return "".join(f"\n  {line}" for line in lines[:MOST_LINES]) + (more if len(lines) > MOST_LINES else "")
