"""Class names to synsets: spellings, plurals, ids, warnings, errors, and the embedded datasets' own mappings."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import pytest

import jtln
from jtln.classes import ClassSet
from jtln.errors import UserError
from jtln.linking import AmbiguousClassWarning, Link, link
from jtln.wordnet import hypernym_chain, name, resolve

ASSETS = Path(jtln.__file__).parent / "assets"


def linked(class_name: str) -> str:
    """NLTK's name of the synset that a single class is linked to, ambiguous or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmbiguousClassWarning)
        return name(link(ClassSet([class_name]))[0].synset)


@pytest.mark.parametrize(
    ("class_name", "synset"),
    [
        ("dog", "dog.n.01"),
        ("Dog", "dog.n.01"),
        ("golden retriever", "golden_retriever.n.01"),
        ("golden_retriever", "golden_retriever.n.01"),
        ("Golden-Retriever", "golden_retriever.n.01"),
        ("GoldenRetriever", "golden_retriever.n.01"),
        ("tshirt", "jersey.n.03"),
        ("t-shirt", "jersey.n.03"),
        ("T shirt", "jersey.n.03"),
        ("T-shirt/top", "jersey.n.03"),
        ("unheard-of/dog", "dog.n.01"),
        ("tench, Tinca tinca", "tench.n.01"),
        ("zebras", "zebra.n.01"),
        ("golden retrievers", "golden_retriever.n.01"),
        ("churches", "church.n.01"),
        ("foxes", "fox.n.01"),
        ("butterflies", "butterfly.n.01"),
        ("knives", "knife.n.01"),
        ("wolves", "wolf.n.01"),
        ("timber-wolves", "timber_wolf.n.01"),
        ("geese", "goose.n.01"),
        ("field_mice", "vole.n.01"),
        ("potatoes", "potato.n.01"),
        ("policemen", "policeman.n.01"),
        ("glasses", "spectacles.n.01"),
        ("003.backpack", "backpack.n.01"),
        ("250.zebra", "zebra.n.01"),
        ("104.homer-simpson/zebra", "zebra.n.01"),
        ("airplanes-101", "airplane.n.01"),
        ("251.airplanes-101", "airplane.n.01"),
    ],
)
def test_spellings_of_a_name(class_name: str, synset: str) -> None:
    assert linked(class_name) == synset


def test_how_a_class_was_linked() -> None:
    classes = ClassSet(["bat", "n02087046-toy_dog", "zebra"], ["n02139199", None, None])
    assert link(classes) == (
        Link("bat", "n02139199", "given"),
        Link("n02087046-toy_dog", "n02087046", "id"),
        Link("zebra", "n02391049", "lemma"),
    )


def test_both_spellings_of_a_given_synset_become_the_id() -> None:
    assert link(ClassSet(["x", "y"], ["dog.n.01", "n02121620"]))[0].synset == "n02084071"


def test_a_given_synset_counts_more_than_an_id_in_the_name() -> None:
    assert link(ClassSet(["n02087046-toy_dog"], ["cat.n.01"])) == (Link("n02087046-toy_dog", "n02121620", "given"),)


def test_ambiguous_names_take_the_first_sense_with_one_warning() -> None:
    with pytest.warns(AmbiguousClassWarning) as caught:
        links = link(ClassSet(["crane", "zebra", "mouse"]))
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "2 of 3 class names" in text
    assert "crane -> crane.n.01 (a writer); others: " in text
    assert "crane.n.04 (a lifting_device)" in text
    assert "mouse.n.04 (an electronic_device)" in text
    assert "zebra" not in text
    assert "class,synset" in text
    assert [name(each.synset) for each in links] == ["crane.n.01", "zebra.n.01", "mouse.n.01"]
    assert [name(sense) for sense in links[0].others] == ["crane.n.02", "grus.n.01", "crane.n.04", "crane.n.05"]
    assert links[1].others == ()


def test_a_chosen_synset_or_a_single_sense_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        link(ClassSet(["crane", "zebra"], ["crane.n.05", None]))


def test_unknown_names_are_listed_together_with_suggestions() -> None:
    with pytest.raises(UserError) as error:
        link(ClassSet(["zebbra", "dog", "fighter-jet", "qqqqzzzz"]))
    text = str(error.value)
    assert "zebbra: did you mean 'zebra'" in text
    assert "fighter-jet: did you mean" in text
    assert "'jet'" in text
    assert "qqqqzzzz: nothing is close" in text
    assert "ClassSet(names, synsets)" in text
    assert "class,synset" in text


@pytest.mark.parametrize("class_name", ["Boeing 747-400", "707-320", "A320", "MD-80", "DC-10", "!", "-101"])
def test_numbers_that_belong_to_a_name_are_not_dropped(class_name: str) -> None:
    with pytest.raises(UserError, match="knows as nouns"):
        link(ClassSet([class_name]))


def test_synsets_that_do_not_exist() -> None:
    with pytest.raises(UserError, match=r"n00000001, dog\.n\.99"):
        link(ClassSet(["a", "b", "c"], ["n00000001", "dog.n.99", "dog.n.01"]))
    with pytest.raises(UserError, match="n99999999"):
        link(ClassSet(["n99999999-thing"]))


@pytest.mark.parametrize(("dataset", "size"), [("fashion", 10), ("pictograms", 200)])
def test_mapping_of_an_embedded_dataset(dataset: str, size: int) -> None:
    path = ASSETS / dataset / "classes.csv"
    links = link(ClassSet.from_csv(path))
    assert len(links) == size
    assert {each.how for each in links} == {"given"}
    assert len({each.synset for each in links}) == size, "each class has a synset of its own"
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert resolve(row["synset"]) == row["synset"]
            assert row["note"].split(" ")[0] == name(row["synset"]), "the note begins with NLTK's name"


@pytest.mark.parametrize(
    ("class_name", "kind"),
    [
        ("bat", "mammal"),
        ("ram", "sheep"),
        ("turkey", "bird"),
        ("scorpion", "arachnid"),
        ("shrimp", "crustacean"),
        ("squid", "mollusk"),
        ("octopus", "mollusk"),
        ("blowfish", "fish"),
        ("dolphin", "whale"),
        ("tiger", "feline"),
        ("duck", "bird"),
        ("computer-mouse", "device"),
        ("key", "device"),
        ("hammer", "tool"),
        ("gear", "wheel"),
        ("printer", "peripheral"),
        ("ophiuchus", "region"),
        ("libra", "sign_of_the_zodiac"),
        ("chestnut", "edible_nut"),
        ("pear", "edible_fruit"),
        ("watermelon", "edible_fruit"),
        ("tomato", "vegetable"),
        ("hot-springs", "spring"),
        ("girl", "person"),
        ("boy", "person"),
        ("eye", "sense_organ"),
        ("sun", "star"),
        ("station", "facility"),
        ("bikini", "garment"),
    ],
)
def test_pictograms_mean_what_is_drawn(class_name: str, kind: str) -> None:
    classes = ClassSet.from_csv(ASSETS / "pictograms" / "classes.csv")
    chain = hypernym_chain(classes.synset(classes.index(class_name)) or "")
    assert kind in {name(synset).split(".")[0] for synset in chain[1:]}
