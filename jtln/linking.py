"""Linking class names to WordNet synsets: the dataset's own mapping, an ImageNet id in the name, or a lemma."""

from __future__ import annotations

import difflib
import functools
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from jtln.classes import ClassSet
from jtln.errors import UserError
from jtln.wordnet import find_rows, hypernym_chain, name, nouns, resolve

# WordNet's rules of detachment for nouns, morphy(7WN), and -ves and -oes, which it leaves to the exception list
ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("ves", "fe"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("oes", "o"),
    ("men", "man"),
    ("ies", "y"),
)
REMEDY = (
    "Give their synsets: ClassSet(names, synsets), or a CSV file with the columns class,synset; a synset is written "
    "'n02084071' or 'dog.n.01'."
)


class Link(NamedTuple):
    """A class and the synset that stands for it.

    Attributes:
        name: the class's name.
        synset: its WordNet 3.0 id, such as "n02084071".
        how: "given" (the dataset's own mapping), "id" (an ImageNet id in the name) or "lemma" (by the name).
        others: the ids of the other senses of the matching lemma, most frequent first.
    """

    name: str
    synset: str
    how: str
    others: tuple[str, ...] = ()


class AmbiguousClassWarning(UserWarning):
    """Class names have several meanings and the most frequent one was taken."""


def link(classes: ClassSet) -> tuple[Link, ...]:
    """One link for each class, in order.

    A given synset counts most, then an ImageNet id in the name (``n02084071-toy_dog``), then the name as a WordNet
    lemma: case, spaces, hyphens and underscores are folded, plurals reduced, a number before the name
    (``003.backpack``) or a final ``-101`` removed, and of alternatives (``T-shirt/top``) the first one known is taken.
    Where a lemma has several senses the first, which is the most frequent, is taken, and one
    :class:`AmbiguousClassWarning` lists them.

    Raises:
        UserError: a given synset or an id does not exist, or names are unknown; it lists them all.
    """
    given = {
        index: synset for index in range(len(classes)) if (synset := classes.synset(index) or _id(classes.names[index]))
    }
    find_rows(given.values())  # all mistakes in one message
    links, unknown_names = [], []
    for index, class_name in enumerate(classes):
        if index in given:
            links.append(Link(class_name, resolve(given[index]), "given" if classes.synset(index) else "id"))
        elif found := _senses(class_name):
            links.append(Link(class_name, found[0], "lemma", found[1:]))
        else:
            unknown_names.append(class_name)
    if unknown_names:
        hints = "".join(f"\n  {unknown_name}: {_suggest(unknown_name)}" for unknown_name in unknown_names)
        raise UserError(f"expected class names that WordNet 3.0 knows as nouns, but got:{hints}\n{REMEDY}")
    if ambiguous := [each for each in links if each.others]:
        lines = "".join(f"\n  {_senses_text(each)}" for each in ambiguous)
        warnings.warn(
            f"{len(ambiguous)} of {len(links)} class names have several meanings in WordNet; the most frequent one was "
            f"taken:{lines}\nWhere that is wrong: {REMEDY}",
            AmbiguousClassWarning,
            stacklevel=2,
        )
    return tuple(links)


def explain(synset: str) -> str:
    """A sense as people tell it from others: "crane.n.04 (a lifting_device)"."""
    chain = hypernym_chain(synset)
    if len(chain) == 1:
        return name(synset)
    above = name(chain[1]).rsplit(".", 2)[0]
    return f"{name(synset)} ({'an' if above[0] in 'aeiou' else 'a'} {above})"


def _senses_text(each: Link) -> str:
    return f"{each.name} -> {explain(each.synset)}; others: {', '.join(map(explain, each.others))}"


def _id(class_name: str) -> str | None:
    match = re.search(r"(?<![0-9A-Za-z])n\d{8}(?!\d)", class_name)
    return match[0] if match else None


def _senses(class_name: str) -> tuple[str, ...]:
    """The ids of what the name may mean; of several lemmas that it may be, those of the first that is spelled alike."""
    for spelling in _spellings(class_name):
        forms = list(_singulars(_fold(spelling)))
        spelled = [form for form in forms if nouns().senses(form)][:1]
        lemmas = spelled or [lemma for form in forms for lemma in _joined().get(_join(form), ())]
        if rows := dict.fromkeys(row for lemma in lemmas for row in nouns().senses(lemma)):
            return tuple(nouns().id(row) for row in rows)
    return ()


def _spellings(class_name: str) -> Iterator[str]:
    """The name as it is, without its number, and the parts between slashes, commas and semicolons."""
    whole = class_name.strip()
    bare = re.sub(r"^\d+[._\-\s]+(?=[^\W\d])|-101$", "", whole)
    yield whole
    yield bare
    if len(parts := re.split(r"[/,;]", bare)) > 1:
        yield from (part.strip() for part in parts if part.strip())


def _fold(text: str) -> str:
    return re.sub(r"[\s_]+", "_", text.strip().lower())


def _singulars(form: str) -> Iterator[str]:
    """The form itself and its possible singulars, also with hyphens between the words read as spaces."""
    for spelling in dict.fromkeys((form, form.replace("-", "_"))):
        yield spelling
        yield from nouns().exceptions.get(spelling, ())
        head, mark, last = spelling.rpartition("_")
        yield from (head + mark + singular for singular in nouns().exceptions.get(last, ()) if mark)
        if not spelling.endswith("ss"):
            yield from (spelling[: -len(old)] + new for old, new in ENDINGS if spelling.endswith(old))


def _join(form: str) -> str:
    return re.sub(r"[-_.']", "", form)


@functools.cache
def _joined() -> dict[str, list[str]]:
    """Lemmas by their letters alone: "tshirt" -> ["t-shirt"]."""
    lemmas: dict[str, list[str]] = {}
    strip = str.maketrans("", "", "-_.'")
    for lemma in nouns().lemmas:
        lemmas.setdefault(lemma.translate(strip), []).append(lemma)
    return lemmas


def _suggest(class_name: str) -> str:
    """The closest lemmas, and the last word where it is one: "fighter-jet" is some kind of "jet"."""
    form = _fold(list(_spellings(class_name))[-1]).replace("-", "_")
    # difflib against all 117798 lemmas takes seconds a name; a slip rarely changes the first letter or the length much
    near = [lemma for lemma in nouns().lemmas if lemma[0] == form[:1] and abs(len(lemma) - len(form)) <= 2]
    found = difflib.get_close_matches(form, near, n=3, cutoff=0.7)
    last = form.rpartition("_")[2]
    found += [lemma for lemma in _singulars(last) if nouns().senses(lemma) and not last.isdigit()][:1]
    return (
        f"did you mean {' or '.join(repr(lemma) for lemma in dict.fromkeys(found))}?" if found else "nothing is close"
    )
