"""``jtln classes``: look at a dataset's categories, and at what they are linked to, before any training."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from jtln.cli.hydra_app import run_hydra
from jtln.names.linking import Found, Link, explain, ideas, link_all, suggestion
from jtln.names.wordnet import hypernym_chain, name

COLUMNS = ("class", "synset", "path", "task", "how", "note", "others", "suggestion")
LEVELS = 3  # of the chain above a synset, on the terminal; the file has them all
OTHERS = 3  # meanings, on the terminal

HELP = """\
usage: jtln classes [GROUP=FILE ...] [KEY=VALUE ...]

Print every class with its WordNet synset and what is doubtful, and write classes.csv, a table to correct.
Groups and keys are those of training, dataset and cost above all: jtln train --help. For instance:

  jtln classes dataset=pictograms
  jtln classes dataset=folder dataset.source.root=PHOTOS dataset.target.root=MINE"""


def main(arguments: list[str]) -> int:
    """Print every class with its synset; write classes.csv, to be corrected and passed back. Returns the exit code."""
    if {"--help", "-h"} & set(arguments):
        print(HELP)
        return 0
    return run_hydra(["hydra.run.dir=outputs/classes/${now:%Y-%m-%d_%H-%M-%S}", *arguments], _show_classes)


def _show_classes(config: DictConfig) -> None:
    from jtln.reporting.tables import Column, show

    spec = instantiate(config.dataset)
    senses = config.cost.get("senses", "context")
    table, lines = [], []
    counts = {"given": 0, "id": 0, "lemma": 0, "slip": 0, "head": 0, "unmatched": 0, "ambiguous": 0}
    for task, classes in (("source", spec.source_classes), ("target", spec.target_classes)):
        for index, each in enumerate(link_all(classes, senses)):
            path = "/".join(classes.path(index) or ())
            counts[each.how if isinstance(each, Link) else "unmatched"] += 1
            counts["ambiguous"] += isinstance(each, Link) and each.how == "lemma" and bool(each.others)
            table.append(_line(each, task, path))
            lines.append(_row(each, task, path))
    columns = [Column(name) for name in ("task", "class", "synset", "is a kind of", "path", "look at")]
    if not any(row[4] for row in lines):
        columns, lines = columns[:4] + columns[5:], [row[:4] + row[5:] for row in lines]
    show(
        f"{spec.name}: {len(spec.source_classes)} source and {len(spec.target_classes)} target classes", columns, lines
    )

    file = Path(HydraConfig.get().runtime.output_dir, "classes.csv")
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
    print(_summary(counts))
    if unmatched := [line["class"] for line in table if line["how"] == "unmatched"]:
        print(f"unmatched, of which cost=wordnet has no knowledge (mean costs): {', '.join(unmatched)}")
        if all(line["path"] for line in table):
            print("every class has a path, so that cost=taxonomy needs no synsets")
    if spec.dropped:
        print(f"left out of the source, being target classes: {', '.join(spec.dropped)}")
    print(f"classes.csv: {file}")
    if "links" in config.dataset:
        print(f"Correct the column synset, then: dataset.links={shlex.quote(str(file))}")


def _summary(counts: dict[str, int]) -> str:
    several = f" ({counts['ambiguous']} with several meanings)" if counts["ambiguous"] else ""
    words = {
        "given": "by the dataset",
        "id": "by an ImageNet id in the name",
        "lemma": f"by name{several}",
        "slip": "by a close spelling",
        "head": "by what they are a kind of",
    }
    linked = [f"{counts[how]} {text}" for how, text in words.items() if counts[how]]
    return f"linked to WordNet: {', '.join(linked) or 'none'}; {counts['unmatched']} unmatched"


def _line(each: Found, task: str, path: str) -> dict[str, str]:
    """Return a class's line of the table that the user corrects.

    What a class is a kind of stands as a suggestion, and not as its synset: two lamps are two classes.
    """
    line = {"class": each.name, "synset": "", "path": path, "task": task}
    if isinstance(each, Link):
        kind = each.how == "head"
        note = "; ".join(filter(None, (_chain(each.synset), each.note)))
        line |= {"how": each.how, "note": note, "others": "; ".join(map(explain, each.others))}
        return line | ({"suggestion": name(each.synset)} if kind else {"synset": each.synset})
    note = f"there is no synset {each.given}" if each.given else "not in WordNet by this name"
    found = ideas(each)
    suggestion = name(found[0]) if found else ""
    return line | {"how": "unmatched", "note": note, "others": "; ".join(map(explain, found)), "suggestion": suggestion}


def _row(each: Found, task: str, path: str) -> list[str]:
    """Return a class's row on the terminal, shorter."""
    if isinstance(each, Link):
        others = f"or {', '.join(map(name, each.others[:OTHERS]))}" if each.others else ""
        others += f" and {len(each.others) - OTHERS} more" if len(each.others) > OTHERS else ""
        return [task, each.name, name(each.synset), _chain(each.synset, LEVELS), path, each.note or others]
    return [task, each.name, "-", "", path, f"UNMATCHED: {suggestion(each)}"]


def _chain(synset: str, levels: int | None = None) -> str:
    """Return "crane.n.04 < lifting device < device < ...", or, with ``levels``, so many of the synsets above it."""
    first, *above = [name(each) for each in hypernym_chain(synset)]
    words = [each.rsplit(".", 2)[0].replace("_", " ") for each in above]
    if levels is None:
        return " < ".join([first, *words])
    return " < ".join([*words[:levels], *(["..."] if len(words) > levels else [])])
