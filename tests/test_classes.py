from pathlib import Path

import pytest

from jtln.classes import ClassSet
from jtln.errors import UserError

PETS = ClassSet(["cat", "dog", "fox"], ["cat.n.01", "", None])


def test_is_an_ordered_set() -> None:
    assert (len(PETS), list(PETS), PETS.names) == (3, ["cat", "dog", "fox"], ("cat", "dog", "fox"))
    assert [PETS.synset(i) for i in range(3)] == ["cat.n.01", None, None]
    assert PETS.index("fox") == 2
    assert ClassSet(name for name in ("cat", "dog")).synset(1) is None
    assert hash(PETS) == hash(ClassSet(["cat", "dog", "fox"], ["cat.n.01", None, None]))


def test_subset_keeps_order_and_synsets() -> None:
    assert PETS.subset(["fox", "cat"]) == ClassSet(["fox", "cat"], [None, "cat.n.01"])
    assert ClassSet(["cat", "dog"]).subset(["dog"]) == ClassSet(["dog"])


def test_reads_a_table(tmp_path: Path) -> None:
    file = tmp_path / "classes.csv"
    file.write_text('class,synset,note\ncat,cat.n.01,purrs\n"fox, red",,\n', encoding="utf-8")
    assert ClassSet.from_csv(file) == ClassSet(["cat", "fox, red"], ["cat.n.01", None])
    file.write_text("name,synset\ncat,\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"expected the columns 'class' and 'synset' in .*classes\.csv, but got: name, synset"
    ):
        ClassSet.from_csv(file)
    file.write_text("class,synset\n", encoding="utf-8")
    with pytest.raises(UserError, match="expected at least one class, but got none"):
        ClassSet.from_csv(file)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="at least one class"):
        ClassSet([])
    with pytest.raises(UserError, match="expected a class name at index 1, but got an empty one"):
        ClassSet(["cat", " "])
    with pytest.raises(UserError, match="each class name once, but got more than one of: cat, dog"):
        ClassSet(["dog", "cat", "fox", "cat", "dog"])
    with pytest.raises(UserError, match="expected one synset for each of 2 classes, but got 1"):
        ClassSet(["cat", "dog"], ["cat.n.01"])
    with pytest.raises(UserError, match=r"unknown class 'fix': .* Did you mean 'fox'"):
        PETS.index("fix")
    with pytest.raises(UserError, match="unknown class 'cow'"):
        PETS.subset(["cat", "cow"])
