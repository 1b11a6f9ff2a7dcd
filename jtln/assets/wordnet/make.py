"""Make the noun table from WordNet 3.0's database files.

    python -m jtln.assets.wordnet.make DIR

DIR holds ``data.noun``, ``index.noun``, ``noun.exc`` and ``cntlist.rev`` of WordNet 3.0 (the ``dict`` folder of
Princeton's archive, or what Debian's ``wordnet-base`` installs under ``share/wordnet``). The table is written beside
this file. The format of the originals is described in WordNet's manual pages wndb(5WN) and cntlist(5WN).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jtln.errors import UserError

TABLE = Path(__file__).with_name("nouns.npz")
SYNSETS = 82115  # of WordNet 3.0; another version has other offsets, which are not ImageNet's ids


def records(path: Path) -> Iterator[list[str]]:
    """Yield the fields of each line, without the licence at the head and the gloss at the end."""
    if not path.is_file():
        raise UserError(f"expected WordNet 3.0's noun files, but there is no {path.name} in {path.parent}")
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.startswith("  "):
                yield line.split("|")[0].split()


def read_synsets(path: Path) -> tuple[list[str], list[str], list[list[str]]]:
    """Return each synset's offset, first lemma, and (instance) hypernyms' offsets in WordNet's order."""
    offsets, first_lemmas, hypernyms = [], [], []
    for fields in records(path):
        lemma_count = int(fields[3], 16)
        pointers = fields[5 + 2 * lemma_count :]
        offsets.append(fields[0])
        first_lemmas.append(fields[4].lower())
        hypernyms.append([at for kind, at in zip(pointers[::4], pointers[1::4], strict=True) if kind in ("@", "@i")])
    return offsets, first_lemmas, hypernyms


def count_hyponyms(parents: list[list[int]]) -> np.ndarray:
    """(N,) how many synsets lie below each one, each counted once however many ways lead up to it."""
    counts = np.zeros(len(parents), np.int32)
    for row, above in enumerate(parents):
        ancestors: set[int] = set()
        waiting = list(above)
        while waiting:
            ancestor = waiting.pop()
            if ancestor not in ancestors:
                ancestors.add(ancestor)
                waiting.extend(parents[ancestor])
        counts[list(ancestors - {row})] += 1
    return counts


def count_tags(folder: Path) -> np.ndarray:
    """(N,) how often each synset was meant in the texts that WordNet's authors tagged, by whichever of its lemmas."""
    rows: dict[str, int] = {}  # by sense key, see senseidx(5WN); 1 is for nouns
    for row, fields in enumerate(records(folder / "data.noun")):
        words = fields[4 : 4 + 2 * int(fields[3], 16)]
        for lemma, number in zip(words[::2], words[1::2], strict=True):
            rows[f"{lemma.lower()}%1:{fields[1]}:{int(number, 16):02d}::"] = row
    counts = np.zeros(row + 1, np.uint16)
    for key, _, count in records(folder / "cntlist.rev"):
        if key in rows:  # other parts of speech are not, nor are a few senses of older versions
            counts[rows[key]] += int(count)
    return counts


def text(lines: list[str]) -> np.ndarray:
    """Return the lines as ASCII bytes, a line break between two of them."""
    return np.frombuffer("\n".join(lines).encode("ascii"), np.uint8)


def make(folder: Path) -> dict[str, np.ndarray]:
    """Return the table's arrays, for N synsets, E hypernym edges, L lemmas and M senses.

    offsets (N,) steps between the sorted offsets; hypernym_counts (N,) and hypernyms (E,) rows, synset by synset;
    hyponyms (N,) numbers of descendants; tags (N,) occurrences in tagged texts; lemmas: sorted names, one a line;
    sense_counts (L,) and senses (M,) rows, lemma by lemma in the order of frequency; first (M / 8,) bits: this lemma
    is the first of that synset; exceptions: irregular plurals with their singulars, one a line.
    """
    offsets, first_lemmas, hypernyms = read_synsets(folder / "data.noun")
    if len(offsets) != SYNSETS:
        raise UserError(f"expected WordNet 3.0's {SYNSETS} noun synsets, but got {len(offsets)} in {folder}")
    row = {offset: index for index, offset in enumerate(offsets)}
    parents = [[row[offset] for offset in above] for above in hypernyms]

    # index.noun: lemma pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt synset_offset...
    senses = {fields[0]: [row[at] for at in fields[-int(fields[2]) :]] for fields in records(folder / "index.noun")}
    lemmas = sorted(senses)
    exceptions = sorted(
        " ".join([plural, *singulars])
        for plural, *found in records(folder / "noun.exc")
        if (singulars := [lemma for lemma in found if lemma in senses])
    )
    return {
        "offsets": np.diff(np.array(offsets, np.int32), prepend=0).astype(np.int32),
        "hypernym_counts": np.array([len(above) for above in parents], np.uint8),
        "hypernyms": np.array([at for above in parents for at in above], np.int32),
        "hyponyms": count_hyponyms(parents),
        "tags": count_tags(folder),
        "lemmas": text(lemmas),
        "sense_counts": np.array([len(senses[lemma]) for lemma in lemmas], np.uint8),
        "senses": np.array([at for lemma in lemmas for at in senses[lemma]], np.int32),
        "first": np.packbits([first_lemmas[at] == lemma for lemma in lemmas for at in senses[lemma]]),
        "exceptions": text(exceptions),
    }


def main(arguments: list[str]) -> None:
    """Write the table from the WordNet files in the folder that the one argument names."""
    if len(arguments) != 1:
        raise UserError("expected one argument: python -m jtln.assets.wordnet.make DIR")
    np.savez_compressed(TABLE, **make(Path(arguments[0])))  # type: ignore[arg-type]  # numpy types **kwds as allow_pickle
    print(f"{TABLE.name}: {TABLE.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
