"""The taxonomy cost against shortest paths in the tree as a graph, and against what can be counted by hand."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from jtln.costs import TaxonomyCost, Unknown
from jtln.errors import UserError
from jtln.names.class_set import ClassSet

SOURCE = ClassSet(
    ["737-700", "737-800", "747-400", "Concorde"],
    None,
    ["Boeing/Boeing 737", "Boeing/Boeing 737", "Boeing/Boeing 747", ()],
)
TARGET = ClassSet(["737-900", "A320", "777"], None, ["Boeing/Boeing 737", "Airbus/A320", "Boeing"])


def test_counts_edges() -> None:
    counted = [[2, 6, 3], [2, 6, 3], [4, 6, 3], [4, 4, 3]]
    assert TaxonomyCost().distances(SOURCE, TARGET).tolist() == counted
    scaled = TaxonomyCost().matrix(SOURCE, TARGET)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled, torch.tensor(counted) / 6)


def random_classes(generator: np.random.Generator, prefix: str, count: int) -> ClassSet:
    paths = [[f"{generator.integers(3)}" for _ in range(generator.integers(5))] for _ in range(count)]
    return ClassSet([f"{prefix}{i}" for i in range(count)], None, paths)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_shortest_paths_of_the_graph(seed: int) -> None:
    generator = np.random.default_rng(seed)
    source, target = random_classes(generator, "s", 30), random_classes(generator, "t", 20)
    nodes: dict[tuple[str, ...], int] = {(): 0}
    edges: set[tuple[int, int]] = set()
    leaves: dict[str, int] = {}
    for classes in (source, target):
        for label, name in enumerate(classes):
            way = (*(classes.path(label) or ()), name)
            for depth in range(1, len(way) + 1):
                node = nodes.setdefault(way[:depth], len(nodes))
                edges.add((nodes[way[: depth - 1]], node))
            leaves[name] = node
    rows, columns = zip(*edges, strict=True)
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(len(nodes), len(nodes)))
    steps = shortest_path(graph.tocsr(), directed=False)
    expected = steps[[leaves[name] for name in source]][:, [leaves[name] for name in target]]
    np.testing.assert_array_equal(TaxonomyCost().distances(source, target).numpy(), expected)


def test_a_class_above_another_and_the_same_class() -> None:
    above = ClassSet(["Boeing", "Boeing 737"], None, [(), ("Boeing",)])
    below = ClassSet(["737-700", "Boeing"], None, [("Boeing", "Boeing 737"), ()])
    assert TaxonomyCost().distances(above, below).tolist() == [[2, 0], [1, 1]]


def test_a_hierarchy_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tree.csv"
    file.write_text("class,path,note\ndog,animal/pet,\ncat,animal/pet,\ncar,thing,\nA320,thing,\n", encoding="utf-8")
    cost = TaxonomyCost(str(file))
    assert cost.distances(ClassSet(["dog", "car"]), ClassSet(["cat", "A320"])).tolist() == [[2, 5], [5, 2]]
    assert cost.distances(SOURCE, ClassSet(["A320", "777"], None, TARGET.paths[1:])).tolist()[0] == [5, 3]
    classes = ClassSet(["dgo", "car"]), ClassSet(["cat"])
    with pytest.raises(UserError, match=r"1 of 3 .*dgo.*tree\.csv.*'dog'"):
        TaxonomyCost(str(file), unknown_names="error").matrix(*classes)
    with pytest.warns(UserWarning, match=r"1 of 3 .*dgo.*tree\.csv.*'dog'"):
        assert cost.distances(*classes)[1].tolist() == [5]
    assert cost.unknown(*classes) == Unknown((0,))
    file.write_text("class,synset\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"'class' and 'path'.*tree\.csv"):
        TaxonomyCost(str(file))


def test_a_class_without_a_path_is_named_with_the_remedy() -> None:
    letters = ClassSet([*"abcdefg"])
    with pytest.raises(UserError, match=r"7 of 10 .*: a, b, c, d, e and 2 more.*file=FILE"):
        TaxonomyCost(unknown_names="error").matrix(letters, TARGET)
    with pytest.raises(UserError, match=r"source class.*all 7: a, b, c, d, e, .*file=FILE"):
        TaxonomyCost().matrix(letters, TARGET)
    with pytest.raises(UserError, match=r"'errors'.*'error'"):
        TaxonomyCost(unknown_names="errors")


def test_a_class_without_a_path_has_mean_costs() -> None:
    target = ClassSet([*TARGET.names, "balloon"], None, [*(TARGET.paths or ()), None])
    with pytest.warns(UserWarning, match="1 of 8 .*balloon"):
        matrix = TaxonomyCost(scale="none").matrix(SOURCE, target)
    known = TaxonomyCost(scale="none").matrix(SOURCE, TARGET)
    torch.testing.assert_close(matrix, torch.cat([known, known.mean(1, keepdim=True)], 1))


def test_a_hierarchy_with_equal_distances_is_warned_of() -> None:
    boeing = ClassSet(["737-700", "747-400"], None, ["Boeing/Boeing 737", "Boeing/Boeing 747"])
    airbus = ClassSet(["A320"], None, ["Airbus/A320"])
    with pytest.warns(UserWarning, match="6 edges"):
        assert TaxonomyCost().matrix(boeing, airbus).tolist() == [[1.0], [1.0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TaxonomyCost().matrix(SOURCE, TARGET)
