from pathlib import Path

import pytest

from jtln.errors import UserError
from jtln.names.class_set import ClassSet

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
    with pytest.raises(UserError, match=r"'class' and 'synset'.*classes\.csv.*: name, synset"):
        ClassSet.from_csv(file)
    file.write_text("class,synset\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"one class.*none"):
        ClassSet.from_csv(file)


PLANES = ClassSet(["737-700", "A320", "kite"], None, [("Boeing", "Boeing 737"), "Airbus/A320", None])


def test_paths_lie_in_a_hierarchy() -> None:
    assert PLANES.paths == (("Boeing", "Boeing 737"), ("Airbus", "A320"), None)
    assert (PLANES.path(0), PLANES.path(2), PETS.path(0)) == (("Boeing", "Boeing 737"), None, None)
    assert PLANES.subset(["kite", "A320"]).paths == (None, ("Airbus", "A320"))
    assert PETS.subset(["dog"]).paths is None
    assert hash(PLANES) != hash(ClassSet(PLANES.names))
    with pytest.raises(UserError, match=r"path.* 2 .*got 1"):
        ClassSet(["cat", "dog"], None, ["pet"])


def test_a_table_with_paths(tmp_path: Path) -> None:
    file = tmp_path / "classes.csv"
    file.write_text(
        "\ufeffclass;synset;path\r\n737-700;;Boeing / Boeing 737\r\nkite;kite.n.03;\r\n;;\r\n", encoding="utf-8"
    )
    planes = ClassSet.from_csv(file)  # as a spreadsheet writes it
    assert planes == ClassSet(["737-700", "kite"], [None, "kite.n.03"], [("Boeing", "Boeing 737"), None])


@pytest.mark.parametrize("lone", ["names", "synsets", "paths"])
def test_a_lone_string_is_not_a_list_of_letters(lone: str) -> None:
    given = {"names": ["c", "a", "t"], lone: "cat"}
    with pytest.raises(UserError, match=r"'cat'.*\['cat'\]"):
        ClassSet(**given)


def links(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "links.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_links_count_more_than_what_is_known(tmp_path: Path) -> None:
    file = links(
        tmp_path, "class,synset,path,note\nfox,n02118333,wild,x\ncat,,pets,\nmouse,mouse.n.04,,\nfox,n02118333,wild,\n"
    )
    assert PETS.with_links(file, also=["mouse", "rat"]) == ClassSet(
        PETS.names, ["cat.n.01", None, "n02118333"], ["pets", None, "wild"]
    )
    assert PETS.with_links(links(tmp_path, "synset,class\ndog.n.01,dog\n")).synsets == ("cat.n.01", "dog.n.01", None)
    assert ClassSet(["cat"]).with_links(links(tmp_path, "class,synset\ncat,\n")) == ClassSet(["cat"])
    assert PLANES.with_links(links(tmp_path, "class,synset\n")) == PLANES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "class,synset\nfix,fox.n.01\ncow,\n",
            r"(?s)2 of .* 2 .* 4 .*'fix'.*'fox'.*'cow'",
        ),
        (
            "class,synset\nfox,fox.n.01\ndog,dog.n.99\ncat,n1\n",
            r"links\.csv.*: dog\.n\.99, n1",
        ),
        ("name,synset\nfox,\n", r"'class' and 'synset'.*links\.csv.*: name, synset"),
        ("", r"'class' and 'synset'.*links\.csv.*empty"),
        ("class,synset\nfox,fox.n.01\nfox,dog.n.01\n", "two lines for 'fox'"),
    ],
)
def test_mistakes_in_links(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        PETS.with_links(links(tmp_path, text), also=["mouse"])


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No such file.*nowhere\.csv"):
        PETS.with_links(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match="directory"):
        ClassSet.from_csv(tmp_path)
    (tmp_path / "latin.csv").write_bytes("class,synset\nKäfer,\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"UTF-8.*latin\.csv"):
        ClassSet.from_csv(tmp_path / "latin.csv")


def test_mistakes() -> None:
    with pytest.raises(UserError, match="at least one class"):
        ClassSet([])
    with pytest.raises(UserError, match=r"index 1.*empty"):
        ClassSet(["cat", " "])
    with pytest.raises(UserError, match=": cat, dog"):
        ClassSet(["dog", "cat", "fox", "cat", "dog"])
    with pytest.raises(UserError, match=r"synset.* 2 .*got 1"):
        ClassSet(["cat", "dog"], ["cat.n.01"])
    with pytest.raises(UserError, match=r"'fix'.*'fox'"):
        PETS.index("fix")
    with pytest.raises(UserError, match="'cow'"):
        PETS.subset(["cat", "cow"])


def test_links_may_have_a_column_for_the_task(tmp_path: Path) -> None:
    """Lines of ``jtln classes`` for a class of both tasks: the own task's line takes precedence over the other's."""
    path = tmp_path / "links.csv"
    path.write_text("class,synset,task\ncrane,crane.n.04,source\ncrane,crane.n.05,target\nheron,heron.n.02,target\n")
    classes = ClassSet(["crane", "heron"])
    assert classes.with_links(path, task="source").synsets == ("crane.n.04", "heron.n.02")
    assert classes.with_links(path, task="target").synsets == ("crane.n.05", "heron.n.02")
    with pytest.raises(UserError, match="two lines for 'crane'"):
        classes.with_links(path)


def test_accents_in_two_characters_are_the_same_class(tmp_path: Path) -> None:
    classes = ClassSet(["ant", "m\u00fccke"])
    path = tmp_path / "links.csv"
    path.write_text("class,synset\nmu\u0308cke,mosquito.n.01\n", encoding="utf-8")
    assert classes.with_links(path).synsets == (None, "mosquito.n.01")
    assert classes.index("mu\u0308cke") == 1
