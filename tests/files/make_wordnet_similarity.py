"""Make wordnet_similarity.csv, the reference that tests/test_wordnet.py compares with, by NLTK.

    python tests/files/make_wordnet_similarity.py DIR

DIR holds WordNet 3.0's database files, all parts of speech (what Debian's ``wordnet-base`` installs under
``share/wordnet``; NLTK's own copy of the corpus serves as well). Made with NLTK 3.10.4.
"""

from __future__ import annotations

import csv
import math
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import nltk
from nltk.corpus.reader.wordnet import WordNetCorpusReader

METRICS = ("path", "wup", "lch", "lin", "jcn", "res")


class Reader(WordNetCorpusReader):
    """NLTK's reader without the mapping between WordNet versions, which needs more files and is for translations."""

    def map_wn(self, version: str = "wordnet") -> None:
        return None


def read(folder: Path, work: Path) -> WordNetCorpusReader:
    """NLTK's reader on ``folder``, with stand-ins for two files that Debian leaves out and similarities do not need."""
    shutil.copytree(folder, work, dirs_exist_ok=True)
    if not (work / "lexnames").exists():
        (work / "lexnames").write_text("".join(f"{i:02d}\tunknown\t1\n" for i in range(45)))
    if not (work / "index.sense").exists():
        (work / "index.sense").write_text("")
    nltk.data.path.append(str(work))  # NLTK reads corpora only from folders that are listed as data folders
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no multilingual data
        return Reader(str(work), None)


def intrinsic(synsets: list) -> dict[str, dict[int, float]]:
    """Counts that NLTK, which takes -log(count / total), turns into the content of Seco, Veale & Hayes 2004."""
    hyponyms = dict.fromkeys((synset.offset() for synset in synsets), 0)
    for synset in synsets:
        for ancestor in {a.offset() for path in synset.hypernym_paths() for a in path} - {synset.offset()}:
            hyponyms[ancestor] += 1
    counts = {at: math.exp(math.log(n + 1) / math.log(len(synsets)) - 1) for at, n in hyponyms.items()}
    return {"n": {0: 1.0, **counts}}


def pairs(synsets: list) -> list[tuple]:
    """Random pairs, pairs with several hypernyms (where definitions differ), neighbours, and identical ones."""
    chance = random.Random(0)
    several = [s for s in synsets if len(s.hypernyms() + s.instance_hypernyms()) > 1]
    people = [s for s in synsets if any(a.name() == "person.n.01" for path in s.hypernym_paths() for a in path)]
    chosen = [tuple(chance.sample(synsets, 2)) for _ in range(120)]
    chosen += [tuple(chance.sample(several, 2)) for _ in range(80)]
    chosen += [tuple(chance.sample(people, 2)) for _ in range(40)]
    for synset in chance.sample(several, 40):
        above = chance.choice(chance.choice(synset.hypernym_paths())[:-1])
        chosen += [(synset, above), (above, synset)]
    chosen += [(synset, synset) for synset in chance.sample(several, 10) + chance.sample(synsets, 10)]
    return chosen


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        reader = read(folder, Path(work))
        synsets = sorted(reader.all_synsets("n"), key=lambda synset: synset.offset())
        content = intrinsic(synsets)
        with open(Path(__file__).with_name("wordnet_similarity.csv"), "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["source", "source_name", "target", "target_name", *METRICS])
            for a, b in pairs(synsets):
                plain = [getattr(a, f"{metric}_similarity")(b) for metric in METRICS[:3]]
                informed = [getattr(a, f"{metric}_similarity")(b, content) for metric in METRICS[3:]]
                names = [f"n{a.offset():08d}", a.name(), f"n{b.offset():08d}", b.name()]
                writer.writerow([*names, *(f"{value:.15g}" for value in plain + informed)])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected one argument: python tests/files/make_wordnet_similarity.py DIR")
    main(Path(sys.argv[1]))
