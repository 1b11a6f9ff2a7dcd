"""Parsing of class names as found in folders and lists: from "003.GoldenRetrievers" to the WordNet lemma."""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from jtln.names.wordnet import nouns, similarity

# WordNet's rules of detachment for nouns, morphy(7WN), and -ves and -oes, which WordNet has in its exception list.
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
# WordNet knows "colour" and "grey whale", but not "labour ward", "licence plate" or "chequered flag".
VARIANTS = (
    ("our", "or"),
    ("tre", "ter"),
    ("grey", "gray"),
    ("gray", "grey"),
    ("licence", "license"),
    ("cheque", "check"),
    ("tyre", "tire"),
    ("mould", "mold"),
    ("plough", "plow"),
    ("yoghurt", "yogurt"),
    ("doughnut", "donut"),
    ("jewellery", "jewelry"),
    ("aluminium", "aluminum"),
    ("programme", "program"),
    ("ogue", "og"),
    ("iser", "izer"),
    ("ising", "izing"),
    ("lled", "led"),
    ("lling", "ling"),
)
# Suffixes of class names that describe the view and not the object: "car_side", "faces easy".
VIEWS = frozenset(
    ("side", "front", "rear", "back", "left", "right", "top", "bottom", "view", "easy", "hard", "closeup")
)
# The head noun stands before these: "statue of liberty", "love in the mist".
PREPOSITIONS = ("of", "in", "on", "at", "with", "for", "from")
LETTERS_MOVED, LETTERS_WRONG = 6, 9  # minimum lengths of a misspelled name, see slips
NEAR = 4  # most edges between a sense and its hint in brackets: in "crane (machine)" a lifting device is one edge away


class Reading(NamedTuple):
    """The possible meanings of a name.

    Attributes:
        senses: WordNet 3.0 ids, the most probable first.
        note: empty, or the interpretation that was needed: "read as 'polar bear'".
    """

    senses: tuple[str, ...]
    note: str = ""


def read(name: str) -> Reading | None:
    """Return the senses of ``name`` by the first of these readings that is in WordNet; None if none is.

    1. The name itself: case, accents, spaces, hyphens and underscores are folded, plurals reduced and British spellings
       tried; then the name without a number before it (``003.backpack``) or after it (``ketch_101``), or an article.
    2. With a hint in brackets, ``crane (bird)``: the senses below a sense of the hint, or of ``hint name`` (``mouse
       (computer)``); otherwise the sense nearest to the hint.
    3. With several names between slashes, commas or semicolons: ``bear, polar`` in reverse order; the sense below that
       of an earlier part (``animals/bat``); otherwise the sense that the parts share (``mouse, computer mouse``), and
       otherwise the first known part (``T-shirt/top``).
    4. With its kind as the first or last word, ``golden retriever dog``: the senses below that kind.
    5. Two words in reverse order, ``bear polar``.
    """
    text = _plain(name)
    for spelling in _bare(text):
        if rows := look_up(spelling):
            return _reading(rows, _number(text, spelling))
    return _bracketed(text) or _parted(text) or _with_its_kind(text)


def head(name: str) -> tuple[str, ...]:
    """Return the senses of the head noun of an unknown compound: "bike_helmet" -> "helmet"; empty if there is none.

    In English the head comes last, or before a preposition such as "of": the longest known suffix of that part is the
    head. A view after it ("car_side") is ignored.
    """
    words = _words(re.sub(r"[(\[].*?[)\]]", " ", _plain(name)))
    words = re.split(rf"(?i) (?:{'|'.join(PREPOSITIONS)}) ", " ".join(words))[0].split(" ")
    while len(words) > 1 and (words[-1].lower() in VIEWS or words[-1].isdigit()):
        words.pop()
    for start in range(len(words)):
        if sum(map(len, words[start:])) > 2 and (rows := look_up(" ".join(words[start:]))):
            return _ids(rows)
    return ()


def closest(name: str, count: int = 10) -> list[str]:
    """Return up to ``count`` lemmas with a spelling similar to ``name``, the most similar first."""
    form = _fold([*_bare(_plain(name))][-1]).replace("-", "_")
    # Comparing with all 117,798 lemmas takes seconds, and a typo rarely changes the first letter or the length much.
    near = [lemma for size in range(-2, 3) for lemma in _by_shape().get((form[:1], len(form) + size), ())]
    return difflib.get_close_matches(form, near, n=count, cutoff=0.8)


def slips(name: str, near: Sequence[str] | None = None) -> list[str]:
    """Return the lemmas of which ``name`` is probably a misspelling: "water_lilly" -> ["water_lily"].

    Apart from spaces, hyphens, apostrophes and plurals, name and lemma differ by an extra letter, a missing letter or
    two swapped neighbours in a name of 6 letters or more; otherwise by one wrong letter in a name of 9 or more
    ("flamengo" resembles both a dance and a bird). Only lemmas of physical things count. A name of several words that
    are nouns themselves is taken as correct: "desk chair" is not a misspelt "deck chair".

    Args:
        name: a class's name.
        near: :func:`closest` of the name, if known.
    """
    form = _fold([*_bare(_plain(name))][-1])
    words = _words(form)
    if len(words) > 1 and all(map(look_up, words)):
        return []
    letters = [_join(each) for each in _singulars(form)]
    near = closest(name) if near is None else near
    physical = rows_of(["physical_entity.n.01"])
    near = [lemma for lemma in near if below(nouns().senses(lemma), physical)]
    for least, is_slip in ((LETTERS_MOVED, _is_moved), (LETTERS_WRONG, _is_wrong)):
        tried = [each for each in letters if len(each) >= least and each.isalpha()]
        if found := [lemma for lemma in near if any(is_slip(each, _join(lemma)) for each in tried)]:
            return found
    return []


def look_up(text: str) -> list[int]:
    """Return the rows of the senses of ``text`` if the whole is one noun, the most frequent first; empty otherwise."""
    form = _fold(text)
    if not any(map(str.isalpha, form)):
        return []
    forms = list(_singulars(form))
    known = [each for each in forms if nouns().senses(each)]
    physical = rows_of(["physical_entity.n.01"])
    # "shoes" is a lemma by itself, but of a situation only: "shoe" is taken. "glasses" names an instrument and stays.
    lemmas = next(([each] for each in known if below(nouns().senses(each), physical)), known[:1])
    lemmas = lemmas or [lemma for each in forms for lemma in _joined().get(_join(each), ())]
    if not lemmas:
        variants = [form.replace(old, new) for old, new in VARIANTS if old in form] + [form + "s"]
        spaced = _fold(" ".join(_words(text)))  # GoldenGeese
        forms = [single for each in (*variants, spaced) for single in _singulars(each)]
        lemmas = [each for each in forms if nouns().senses(each)][:1]
    return list(dict.fromkeys(row for lemma in lemmas for row in nouns().senses(lemma)))


def below(rows: Iterable[int], kind: Iterable[int], itself: bool = True) -> list[int]:
    """Return the ``rows`` with a hypernym among ``kind``, in their order; with ``itself`` a row counts as its own."""
    kinds = set(kind)

    def is_kind(row: int) -> bool:
        seen, waiting = set(), [row] if itself else nouns().hypernyms(row)
        while waiting:
            here = waiting.pop()
            if here in kinds:
                return True
            if here not in seen:
                seen.add(here)
                waiting.extend(nouns().hypernyms(here))
        return False

    return [row for row in rows if kinds and is_kind(row)]


def rows_of(ids: Iterable[str]) -> list[int]:
    """Return the rows of ids that exist."""
    return [row for each in ids if (row := nouns().find(each)) is not None]


def _plain(name: str) -> str:
    """Return the name without accents, typographic apostrophes and underscores."""
    text = unicodedata.normalize("NFKD", name.replace("’", "'").replace("&", " and "))
    return re.sub(r"[\s_]+", " ", "".join(c for c in text if not unicodedata.combining(c))).strip()


def _bare(text: str) -> Iterator[str]:
    """Yield the text itself, the text without a number before or after it, and that without an article."""
    yield text
    bare = re.sub(r"^[#(\[]?\d+[)\]]?[.:\-\s]+(?=[^\W\d])|^0\d+(?=[^\W\d]{3})|-101$|-0\d+$", "", text)
    bare = re.sub(r"(?<=[^\W\d]{3})[\s.]*\d+$", "", bare)
    yield bare
    yield re.sub(r"(?i)^(a|an|the) (?=\w)", "", bare)


def _number(text: str, spelling: str) -> str:
    """Return a note on a number that was removed from the end, as it may matter: the aircraft "Falcon 900"."""
    end = re.search(r"(?<=[^\W\d]{3})[\s.]*(\d+)$", re.sub("-101$", "", text))
    return f"read without the number {end[1]}" if end and not spelling.endswith(end[1]) else ""


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s_\-]+|(?<=[a-z])(?=[A-Z])", text) if word]


def _bracketed(text: str) -> Reading | None:
    match = re.fullmatch(r"(.*?)\s*[(\[]\s*(.+?)\s*[)\]]\s*(.*)", text)
    if match is None:
        return None
    before, hint, after = match.groups()
    reading = read(f"{before} {after}".strip()) if (before + after).strip() else None
    kind = look_up(hint)
    if reading is None or not kind:
        return reading
    rows = rows_of(reading.senses)
    compound = [*look_up(f"{hint} {before}"), *look_up(f"{before} {hint}")]
    if fitting := below(rows, kind) or [row for row in rows if row in compound] or below(compound, rows):
        return _reading(fitting, reading.note)
    edges = 1 / similarity(reading.senses, [nouns().id(kind[0])], "path")[:, 0] - 1
    if edges.min() <= NEAR:
        best = rows[int(edges.argmin())]
        return _reading([best, *(row for row in rows if row != best)], f"the nearest to '{hint}'")
    return Reading(reading.senses, f"'{hint}' fits none of its meanings")


def _parted(text: str) -> Reading | None:
    bare = [*_bare(text)][1]
    parts = [part for part in map(str.strip, re.split(r"[/,;]", bare)) if part]
    if len(parts) < 2:
        return None
    if len(parts) == 2 and "," in bare and (rows := look_up(f"{parts[1]} {parts[0]}")):
        return _reading(rows)
    known = [rows for part in parts if len(part) > 1 and (rows := look_up(part))]  # "/a/abbey" is no ampere
    if not known:
        return None
    for index, kind in enumerate(known[:-1]):
        for rows in known[index + 1 :]:
            if "/" in bare and (fitting := below(rows, kind, itself=False)):
                return _reading(fitting)
    shared = {row: sum(row in rows for rows in known) for row in known[0]}
    return _reading([row for row, count in shared.items() if count == max(shared.values())])


def _with_its_kind(text: str) -> Reading | None:
    words = _words([*_bare(text)][-1])
    if len(words) < 2:
        return None
    for rest, kind in ((words[:-1], words[-1]), (words[1:], words[0])):
        if fitting := below(look_up(" ".join(rest)), look_up(kind)):
            return _reading(fitting)
    if len(words) == 2 and words[1].lower() not in VIEWS and (rows := look_up(f"{words[1]} {words[0]}")):
        return _reading(rows, f"read as '{words[1]} {words[0]}'")
    return None


def _ids(rows: Iterable[int]) -> tuple[str, ...]:
    return tuple(nouns().id(row) for row in rows)


def _reading(rows: Iterable[int], note: str = "") -> Reading:
    return Reading(_ids(rows), note)


def _fold(text: str) -> str:
    return re.sub(r"[\s_]+", "_", text.strip().lower())


def _singulars(form: str) -> Iterator[str]:
    """Yield the form and its possible singulars, as they are and with spaces in place of hyphens."""
    for spelling in dict.fromkeys((form, form.replace("-", "_"))):
        yield spelling
        yield from nouns().exceptions.get(spelling, ())
        first, mark, last = spelling.rpartition("_")
        yield from (first + mark + singular for singular in nouns().exceptions.get(last, ()) if mark)
        if not spelling.endswith("ss"):
            yield from (spelling[: -len(old)] + new for old, new in ENDINGS if spelling.endswith(old))


def _join(form: str) -> str:
    return re.sub(r"[-_.']", "", form)


def _is_moved(text: str, other: str) -> bool:
    """Return True if a letter more, a letter less or two swapped neighbours turn ``text`` into ``other``."""
    pairs = enumerate(zip(text, other, strict=False))
    start = next((index for index, (x, y) in pairs if x != y), min(len(text), len(other)))
    x, y = text[start:], other[start:]
    return x[1:] == y or y[1:] == x or (len(x) == len(y) > 1 and x[:2] == y[1::-1] and x[2:] == y[2:])


def _is_wrong(text: str, other: str) -> bool:
    """Return True if ``text`` and ``other`` differ in one letter."""
    return len(text) == len(other) and sum(x != y for x, y in zip(text, other, strict=True)) == 1


@functools.cache
def _joined() -> dict[str, list[str]]:
    """Lemmas by their letters alone: "tshirt" -> ["t-shirt"]."""
    lemmas: dict[str, list[str]] = {}
    strip = str.maketrans("", "", "-_.'")
    for lemma in nouns().lemmas:
        lemmas.setdefault(lemma.translate(strip), []).append(lemma)
    return lemmas


@functools.cache
def _by_shape() -> dict[tuple[str, int], list[str]]:
    """Lemmas by first letter and length."""
    lemmas: dict[tuple[str, int], list[str]] = {}
    for lemma in nouns().lemmas:
        lemmas.setdefault((lemma[0], len(lemma)), []).append(lemma)
    return lemmas
