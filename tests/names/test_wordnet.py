"""The noun taxonomy against NLTK's values, against closed forms, and against itself."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jtln.errors import UserError
from jtln.names import wordnet
from jtln.names.wordnet import METRICS, distance, hypernym_chain, name, nouns, resolve, senses, similarity

REFERENCE = Path(__file__).parents[1] / "files" / "wordnet_similarity.csv"


@pytest.fixture(scope="module")
def reference() -> list[dict[str, str]]:
    with open(REFERENCE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sample() -> list[str]:
    """150 synsets, a third of them with several hypernyms."""
    chance = np.random.default_rng(0)
    several = [row for row in range(len(nouns().offsets)) if len(nouns().hypernyms(row)) > 1]
    rows = [*chance.choice(len(nouns().offsets), 100, replace=False), *chance.choice(several, 50, replace=False)]
    return [nouns().id(row) for row in dict.fromkeys(map(int, rows))]


def test_table_holds_all_of_wordnet_3() -> None:
    assert len(nouns().offsets) == 82115
    assert len(nouns().lemmas) == 117798
    assert nouns().max_depth == 19
    roots = [row for row in range(82115) if not nouns().hypernyms(row)]
    assert [name(nouns().id(row)) for row in roots] == ["entity.n.01"]


@pytest.mark.parametrize(
    ("synset", "named"),
    [
        ("n02084071", "dog.n.01"),
        ("n02121620", "cat.n.01"),
        ("n01440764", "tench.n.01"),
        ("n15075141", "toilet_tissue.n.01"),
    ],
)
def test_imagenet_ids_are_wordnet_offsets(synset: str, named: str) -> None:
    assert name(synset) == named
    assert resolve(named) == synset
    assert resolve(synset) == synset


def test_another_lemma_of_a_synset_names_it_too() -> None:
    assert resolve("domestic_dog.n.01") == resolve("Dog.n.1") == "n02084071"
    assert name(resolve("domestic_dog.n.01")) == "dog.n.01"


@pytest.mark.parametrize(
    "synset", ["n02084072", "n99999999", "dog.n.08", "dog.n.00", "dog.v.01", "dog", "", "n2084071"]
)
def test_what_is_no_synset_is_refused(synset: str) -> None:
    with pytest.raises(UserError, match=rf"WordNet 3\.0.*: {synset}\."):
        resolve(synset)


def test_all_missing_synsets_are_named_at_once() -> None:
    with pytest.raises(UserError, match=r"n00000001, zebra\.n\.02"):
        similarity(["n00000001", "dog.n.01", "zebra.n.02"], ["cat.n.01"])


def test_senses_are_in_order_of_frequency() -> None:
    assert [name(sense) for sense in senses("Mouse")] == ["mouse.n.01", "shiner.n.01", "mouse.n.03", "mouse.n.04"]
    assert senses("tee shirt") == (resolve("jersey.n.03"),)
    assert senses("mice") == ()


def test_hypernym_chain_ends_at_the_root() -> None:
    chain = [name(synset) for synset in hypernym_chain("dog.n.01")]
    assert chain[:3] == ["dog.n.01", "canine.n.02", "carnivore.n.01"]
    assert chain[-1] == "entity.n.01"
    assert hypernym_chain("entity.n.01") == (resolve("entity.n.01"),)
    assert name(hypernym_chain("einstein.n.01")[1]) == "physicist.n.01", "an instance's hypernym"


def test_information_content_is_seco_veale_and_hayes() -> None:
    ic, row = nouns().information, nouns().find
    assert ic[row("entity.n.01")] == 0
    assert ic[row("tench.n.01")] == 1
    assert ic.min() >= 0
    assert ic.max() == 1
    # counted by going down from the synset, where the table was made by going up from each
    below: dict[int, list[int]] = {}
    for child in range(len(nouns().offsets)):
        for parent in nouns().hypernyms(child):
            below.setdefault(parent, []).append(child)
    for synset in ("dog.n.01", "person.n.01", "vehicle.n.01", "lake.n.01"):
        found: set[int] = set()
        waiting = [row(synset)]
        while waiting:
            for child in below.get(waiting.pop(), ()):
                if child not in found:
                    found.add(child)
                    waiting.append(child)
        assert ic[row(synset)] == pytest.approx(1 - math.log(len(found) + 1) / math.log(82115), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_similarity_equals_nltks(metric: str, reference: list[dict[str, str]]) -> None:
    expected = np.array([float(row[metric]) for row in reference])
    expected[expected == 1e300] = np.inf  # how NLTK writes it
    got = similarity([row["source"] for row in reference], [row["target"] for row in reference], metric)
    assert got.shape == (len(reference), len(reference))
    assert got.dtype == np.float64
    np.testing.assert_allclose(np.diag(got), expected, rtol=1e-9, atol=1e-12)


def test_names_equal_nltks(reference: list[dict[str, str]]) -> None:
    for side in ("source", "target"):
        assert [name(row[side]) for row in reference] == [row[f"{side}_name"] for row in reference]


@pytest.mark.parametrize(
    ("metric", "expected"), [("path", 0.2), ("lch", 2.0281482472922856), ("wup", 0.8571428571428571)]
)
def test_values_in_nltks_documentation(metric: str, expected: float) -> None:
    assert similarity(["dog.n.01"], ["cat.n.01"], metric)[0, 0] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("metric", METRICS)
def test_distance_of_a_synset_to_itself_is_zero_and_order_does_not_matter(metric: str, sample: list[str]) -> None:
    d = distance(sample, sample, metric)
    assert np.isfinite(d).all()
    assert d.min() >= 0
    assert d.max() <= 1
    assert (np.diag(d) == 0).all()
    np.testing.assert_allclose(d, d.T, atol=1e-12)


@pytest.mark.parametrize("metric", ["path", "lch", "jcn", "lin"])
def test_only_a_synset_itself_is_at_distance_zero(metric: str, sample: list[str]) -> None:
    d = distance(sample, sample, metric)
    assert (d[~np.eye(len(sample), dtype=bool)] > 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_relatives_are_nearer_than_strangers(metric: str) -> None:
    near, far = distance(["dog.n.01"], ["wolf.n.01", "sandwich.n.01"], metric)[0]
    assert near < far


@pytest.mark.parametrize("metric", METRICS)
def test_a_value_does_not_depend_on_what_else_is_in_the_matrix(metric: str, sample: list[str]) -> None:
    whole = similarity(sample[:20], sample[60:80], metric)
    parts = [[similarity([s], [t], metric)[0, 0] for t in sample[60:80]] for s in sample[:20]]
    np.testing.assert_array_equal(whole, parts)


def test_path_takes_the_shortest_of_several_ways_up() -> None:
    # dog has two hypernyms: the shorter way to "animal" goes by domestic_animal, not by canine
    edges = 1 / similarity(["dog.n.01"], ["animal.n.01", "domestic_animal.n.01", "canine.n.02"], "path")[0] - 1
    np.testing.assert_allclose(edges, [2, 1, 1])


def test_jcn_and_lin_at_the_edges() -> None:
    root_and_leaf = ["entity.n.01", "tench.n.01"]
    np.testing.assert_array_equal(similarity(root_and_leaf, root_and_leaf, "jcn"), [[np.inf, 0], [0, np.inf]])
    np.testing.assert_array_equal(similarity(root_and_leaf, root_and_leaf, "lin"), [[1, 0], [0, 1]])
    np.testing.assert_allclose(distance(root_and_leaf, root_and_leaf, "jcn"), [[0, 0.5], [0.5, 0]])


def test_unknown_metric() -> None:
    with pytest.raises(UserError, match=r"metric 'wupp'.*'wup'"):
        similarity(["dog.n.01"], ["cat.n.01"], "wupp")
    with pytest.raises(UserError, match="metric 'cosine'"):
        distance(["dog.n.01"], ["cat.n.01"], "cosine")


def test_long_lists_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch, sample: list[str]) -> None:
    whole = similarity(sample, sample[:70], "wup")
    monkeypatch.setattr(wordnet, "BLOCK", 40)
    np.testing.assert_array_equal(similarity(sample, sample[:70], "wup"), whole)


def test_empty_lists_give_empty_matrices() -> None:
    assert similarity([], ["dog.n.01"], "wup").shape == (0, 1)


def test_torch_is_not_needed() -> None:
    code = "import sys, jtln.names.wordnet, jtln.names.linking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_table_is_small_and_brings_its_licence() -> None:
    assert wordnet.TABLE.stat().st_size < 2 * 2**20
    licence = wordnet.TABLE.with_name("LICENSE").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence
