"""A cost matrix from a file: by names, whatever their order, and a message for every mistake in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jtln.costs import FileCost, WordNetCost
from jtln.costs.file import load_cost, save_cost
from jtln.errors import UserError
from jtln.names.class_set import ClassSet

SOURCE, TARGET = ClassSet(["dog", "cat, tame", "truck"]), ClassSet(["wolf", "bus"])
COST = torch.tensor([[0.25, 2.0], [0.5, 1.5], [4.0, 0.0]])


def written(folder: Path, text: str) -> Path:
    path = folder / "cost.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_run_writes_is_read_again(tmp_path: Path) -> None:
    save_cost(tmp_path / "cost.csv", COST, SOURCE, TARGET)
    torch.testing.assert_close(FileCost(tmp_path / "cost.csv", scale="none").matrix(SOURCE, TARGET), COST)
    torch.testing.assert_close(FileCost(tmp_path / "cost.csv").matrix(SOURCE, TARGET), COST / 4)
    wordnet = WordNetCost().matrix(ClassSet(["dog"]), TARGET)
    save_cost(tmp_path / "wordnet.csv", wordnet, ClassSet(["dog"]), TARGET)
    read, *names = load_cost(tmp_path / "wordnet.csv")
    torch.testing.assert_close(read, wordnet, rtol=1e-5, atol=1e-6)
    assert names == [["dog"], ["wolf", "bus"]]


def test_the_order_does_not_matter_and_there_may_be_more(tmp_path: Path) -> None:
    path = written(tmp_path, '\ufeffx, bus ,van,wolf\ntruck,0,9,4\ncar,9,9,9\n\n"cat, tame",1.5,9,0.5\ndog,2,9,0.25\n')
    torch.testing.assert_close(FileCost(path, scale="none").matrix(SOURCE, TARGET), COST)


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", cost=COST.numpy().astype(float), source=list(SOURCE), target=list(TARGET))
    torch.testing.assert_close(FileCost(tmp_path / "c.npz", scale="none").matrix(SOURCE, TARGET), COST)
    np.savez(tmp_path / "d.npz", cost=COST.numpy(), source=list(SOURCE))
    with pytest.raises(UserError, match=r"d\.npz.*target"):
        FileCost(tmp_path / "d.npz").matrix(SOURCE, TARGET)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line"),
        ("x,wolf,bus\n", "first line"),
        ("x,wolf,bus\ndog,1\n", r"2 numbers.*'dog'.*cost\.csv.*got 1"),
        ("x,wolf,bus\ndog,1,far\n", r"'dog' and 'bus'.*cost\.csv.*'far'"),
        ("x,wolf,bus\ndog,1,-1\n", r">= 0.*'dog' and 'bus'.*'-1'"),
        ("x,wolf,bus\ndog,1,nan\n", r"'dog' and 'bus'.*'nan'"),
        ("x,wolf,wolf\ndog,1,1\n", "'wolf'.* twice"),
        ("x,wolf,bus\ndog,1,1\ntrucks,1,1\n", r"3 source classes.* 2 .*'cat, tame'"),
        ("x,wolf,busses\ndog,1,1\n", r"3 source classes.*'cat, tame'"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FileCost(written(tmp_path, text)).matrix(SOURCE, TARGET)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="file=FILE"):
        FileCost("")
    with pytest.raises(UserError, match=r"none\.csv"):
        FileCost(tmp_path / "none.csv").matrix(SOURCE, TARGET)
    (tmp_path / "bad.npz").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"bad\.npz"):
        FileCost(tmp_path / "bad.npz").matrix(SOURCE, TARGET)


def test_what_is_no_matrix_at_all(tmp_path: Path) -> None:
    arrays = {"source": list(SOURCE), "target": list(TARGET)}
    np.save(tmp_path / "a.npy", COST.numpy())
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", cost=COST.numpy() + 1j, **arrays)
    np.savez(tmp_path / "c.npz", cost=COST.numpy(), source=np.array("dog"), target=list(TARGET))
    written(tmp_path, 'x,wolf\ndog,"' + "1" * 200_000)
    for name in ("a.npz", "b.npz", "c.npz", "cost.csv"):
        with pytest.raises(UserError, match=rf"CSV or \.npz.*{name}"):
            load_cost(tmp_path / name)


def test_accents_in_two_characters_are_the_same_name(tmp_path: Path) -> None:
    path = written(tmp_path, "x,bu\u0308s\ndog,1\n")
    for name in ("b\u00fcs", "bu\u0308s"):
        assert FileCost(path, scale="none").matrix(ClassSet(["dog"]), ClassSet([name])).tolist() == [[1.0]]
