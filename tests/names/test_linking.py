"""Class names to synsets: spellings, plurals, ids, warnings, errors, and the embedded datasets' own mappings."""

from __future__ import annotations

import csv
import re
import warnings
from pathlib import Path

import pytest

import jtln
from jtln.errors import UserError
from jtln.names.class_set import ClassSet
from jtln.names.linking import AmbiguousClassWarning, Found, Link, Unmatched, ideas, link, link_all
from jtln.names.wordnet import hypernym_chain, name, resolve

ASSETS = Path(jtln.__file__).parent / "assets"


def link_one(classes: ClassSet, **settings: str) -> tuple[Found, ...]:
    """Return the links of a single task's classes."""
    return link({"target": classes}, **settings)["target"]


def linked(class_name: str) -> str:
    """Return NLTK's name of the synset of a single class, ambiguous or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmbiguousClassWarning)
        (each,) = link_one(ClassSet([class_name]))
        assert isinstance(each, Link)
        return name(each.synset)


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
        ("churches", "church.n.02"),
        ("foxes", "fox.n.01"),
        ("butterflies", "butterfly.n.01"),
        ("knives", "knife.n.01"),
        ("wolves", "wolf.n.01"),
        ("timber-wolves", "timber_wolf.n.01"),
        ("geese", "goose.n.01"),
        ("field_mice", "field_mouse.n.02"),
        ("potatoes", "potato.n.01"),
        ("policemen", "policeman.n.01"),
        ("glasses", "spectacles.n.01"),
        ("003.backpack", "backpack.n.01"),
        ("250.zebra", "zebra.n.01"),
        ("104.homer-simpson/zebra", "zebra.n.01"),
        ("airplanes-101", "airplane.n.01"),
        ("251.airplanes-101", "airplane.n.01"),
        ("01_dog", "dog.n.01"),
        ("[01] dog", "dog.n.01"),
        ("#3 dog", "dog.n.01"),
        ("01dog", "dog.n.01"),
        ("dog-01", "dog.n.01"),
        ("cat02", "cat.n.01"),
        ("ketch_101", "ketch.n.01"),
        ("an_apple", "apple.n.01"),
        ("ice-cream-cone", "ice-cream_cone.n.01"),
        ("traffic-light", "traffic_light.n.01"),
        ("traffic.light", "traffic_light.n.01"),
        ("TimberWolves", "timber_wolf.n.01"),
        ("jalapeño", "jalapeno.n.02"),
        ("Crème_brûlée", "creme_brulee.n.01"),
        ("Fish & Chips", "fish_and_chips.n.01"),
        ("bird’s nest", "bird's_nest.n.01"),
        ("grey_whale", "grey_whale.n.01"),
        ("grey wolf", "timber_wolf.n.01"),
        ("licence_plate", "license_plate.n.01"),
        ("aeroplane", "airplane.n.01"),
        ("moustache", "mustache.n.01"),
        ("yoghurt", "yogurt.n.01"),
        ("binocular", "binoculars.n.01"),
        ("bear_polar", "ice_bear.n.01"),
        ("bear, polar", "ice_bear.n.01"),
        ("mouse, computer mouse", "mouse.n.04"),
        ("cock, rooster", "cock.n.04"),
        ("animals/bat", "bat.n.01"),
        ("/a/abbey", "abbey.n.01"),
        ("bus_station/indoor", "bus_terminal.n.01"),
        ("golden_retriever_dog", "golden_retriever.n.01"),
        ("crane bird", "crane.n.05"),
        ("bird_crane", "crane.n.05"),
        ("boxer dog", "boxer.n.04"),
        ("crane (bird)", "crane.n.05"),
        ("crane_(bird)", "crane.n.05"),
        ("crane (machine)", "crane.n.04"),
        ("mouse (computer)", "mouse.n.04"),
        ("mouse [rodent]", "mouse.n.01"),
        ("bat (animal)", "bat.n.01"),
        ("bat (baseball)", "baseball_bat.n.01"),
        ("seal (animal)", "seal.n.09"),
        ("turkey (country)", "turkey.n.02"),
        ("pitcher (jug)", "pitcher.n.02"),
        ("dog (2)", "dog.n.01"),
    ],
)
def test_spellings_of_a_name(class_name: str, synset: str) -> None:
    assert linked(class_name) == synset


def test_how_a_class_was_linked() -> None:
    classes = ClassSet(["bat", "n02087046-toy_dog", "zebra"], ["n02139199", None, None])
    assert link_one(classes) == (
        Link("bat", "n02139199", "given"),
        Link("n02087046-toy_dog", "n02087046", "id"),
        Link("zebra", "n02391049", "lemma"),
    )


def test_both_spellings_of_a_given_synset_become_the_id() -> None:
    assert link_one(ClassSet(["x", "y"], ["dog.n.01", "n02121620"]))[0].synset == "n02084071"


def test_a_given_synset_counts_more_than_an_id_in_the_name() -> None:
    assert link_one(ClassSet(["n02087046-toy_dog"], ["cat.n.01"])) == (Link("n02087046-toy_dog", "n02121620", "given"),)


def test_of_several_senses_the_likeliest_is_taken_with_one_warning() -> None:
    with pytest.warns(AmbiguousClassWarning) as caught:
        links = link_one(ClassSet(["crane", "zebra", "mouse"]))
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "2 of 3 class names" in text
    assert "crane -> crane.n.05 (a wading_bird); others: " in text
    assert "crane.n.01 (a writer)" in text
    assert "mouse.n.04 (an electronic_device)" in text
    assert "zebra" not in text
    assert "class,synset" in text
    assert "dataset.links=FILE" in text
    assert [name(each.synset) for each in links] == ["crane.n.05", "zebra.n.01", "mouse.n.01"]
    assert [name(sense) for sense in links[0].others] == ["crane.n.04", "crane.n.01", "crane.n.02", "grus.n.01"]
    assert links[1].others == ()


@pytest.mark.parametrize(
    ("class_name", "pictured", "first"),
    [
        ("otter", "otter.n.02", "otter.n.01"),  # not its fur
        ("lobster", "lobster.n.02", "lobster.n.01"),  # not its meat
        ("pineapple", "pineapple.n.02", "pineapple.n.01"),  # the fruit, not the plant
        ("banana", "banana.n.02", "banana.n.01"),
        ("crane", "crane.n.04", "crane.n.01"),
        ("dog", "dog.n.01", "dog.n.01"),
        ("archery", "archery.n.01", "archery.n.01"),
    ],
)
def test_which_of_several_senses_is_a_choice(class_name: str, pictured: str, first: str) -> None:
    def found(choice: str) -> str:
        (each,) = link_all(ClassSet([class_name]), choice)
        assert isinstance(each, Link)
        return name(each.synset)

    assert (found("pictured"), found("first")) == (pictured, first)
    with pytest.raises(UserError, match=r"senses 'frist'.*'first'"):
        link_all(ClassSet([class_name]), "frist")


def test_what_an_unknown_name_is_a_kind_of_fits_the_others_too() -> None:
    def kind(*names: str) -> str:
        each = link_all(ClassSet(["whooping-xyz crane", *names]))[0]
        assert isinstance(each, Link)
        assert each.how == "head"
        return name(each.synset)

    assert kind("heron", "stork") == "crane.n.05"
    assert kind("bulldozer", "excavator") == "crane.n.04"


def test_the_likeliest_sense_is_right_more_often_than_the_first() -> None:
    """Compared with the reviewed tables, by name alone."""
    right, known = {"context": 0, "pictured": 0, "first": 0}, 0
    for path in (ASSETS / "classes" / "imagenet.csv", ASSETS / "pictograms" / "classes.csv"):
        given = ClassSet.from_csv(path)
        truth = [resolve(synset) for synset in given.synsets or () if synset]
        for choice in right:
            found = link_all(ClassSet(given.names), choice)
            right[choice] += sum(
                isinstance(each, Link) and each.synset == synset for each, synset in zip(found, truth, strict=True)
            )
        known += len(truth)
    assert right["pictured"] > right["first"] + 100
    assert right["context"] > right["pictured"] + 50
    assert right["context"] > 0.9 * known


def test_a_name_that_is_read_freely_is_warned_of() -> None:
    with pytest.warns(AmbiguousClassWarning) as caught:
        links = link_one(ClassSet(["bear polar", "Falcon 900", "jaguar (car)", "zebra"]))
    assert [each.note for each in links] == [
        "read as 'polar bear'",
        "read without the number 900",
        "'car' fits none of its meanings",
        "",
    ]
    text = str(caught[0].message)
    assert "3 of 4 class names are not in WordNet as they are" in text
    assert "Falcon 900 -> falcon.n.01 (a hawk): read without the number 900" in text


def test_all_links_without_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = link_all(ClassSet(["zebra", "zebbra", "bike_helmet", "x", "elefant"], ["", "", "", "dog.n.99", ""]))
    assert found == (
        Link("zebra", "n02391049", "lemma"),
        Link("zebbra", "n02391049", "slip", (), "spelled like 'zebra'"),
        Link("bike_helmet", resolve("helmet.n.01"), "head", (resolve("helmet.n.02"),), "what it names a kind of"),
        Unmatched("x", "dog.n.99"),
        Unmatched("elefant", "", ("elephant",)),
    )
    assert [name(each) for each in ideas(Unmatched("elefant", "", ("elephant", "zebra")))] == [
        "elephant.n.01",
        "zebra.n.01",
    ]
    assert ideas(Unmatched("x")) == ()


@pytest.mark.parametrize(
    ("class_name", "kind"),
    [
        ("police_car_toy", "plaything.n.01"),
        ("HotDogStand", "base.n.08"),
        ("car_side", "car.n.01"),
        ("Faces_easy", "face.n.01"),
        ("crocodile_head", "head.n.01"),
        ("desk lamp 3", "lamp.n.01"),
        ("desk_chair", "chair.n.01"),  # and no deck chair
        ("bunch of bananas", "bunch.n.01"),
        ("lamp on the table", "lamp.n.01"),
        ("Boeing 747-400", None),
        ("MD-80", None),
        ("shiba_inu", None),
    ],
)
def test_the_head_of_an_unknown_compound(class_name: str, kind: str | None) -> None:
    (each,) = link_all(ClassSet([class_name]), "first")
    assert (name(each.synset) if isinstance(each, Link) else None) == kind
    assert not isinstance(each, Link) or each.how == "head"


@pytest.mark.parametrize(
    ("class_name", "synset"),
    [
        ("water_lilly", "water_lily.n.01"),
        ("Golden_Retreiver", "golden_retriever.n.01"),
        ("zebbras", "zebra.n.01"),
        ("elehpant", "elephant.n.01"),
        ("girafe", "giraffe.n.01"),
        ("crocodyle", "crocodile.n.01"),
        ("barbeton daisy", "barberton_daisy.n.01"),
        ("striped", "stripe.n.05"),  # and no striper, a fish
        ("birman", None),  # a cat, and no barman
        ("sphynx", None),
        ("gaura", None),  # a plant, and no gaur
        ("elefant", None),  # two letters
        ("qqqqzzzz", None),
    ],
)
def test_a_slip_of_the_pen(class_name: str, synset: str | None) -> None:
    (each,) = link_all(ClassSet([class_name]))
    assert (name(each.synset) if isinstance(each, Link) else None) == synset
    assert not isinstance(each, Link) or each.how == "slip"


def test_what_was_guessed_is_warned_of_with_both_names() -> None:
    with pytest.warns(AmbiguousClassWarning) as caught:
        link({"source": ClassSet(["desk_lamp", "shiba_inu"]), "target": ClassSet(["water_lilly", "zebra"])})
    (text,) = (str(each.message) for each in caught)
    assert "desk_lamp -> lamp.n.01 (" in text
    assert "water_lilly -> water_lily.n.01 (an aquatic_plant): spelled like 'water lily'" in text
    assert re.search(r"1 of 4 class names are unknown.*:\n  source shiba_inu: ", text)
    assert "zebra" not in text


def test_unknown_names_of_both_tasks_are_one_error_where_that_is_asked_for() -> None:
    tasks = {"source": ClassSet(["desk_lamp", "shiba_inu"]), "target": ClassSet(["elefant", "zebra"])}
    with pytest.raises(UserError, match=r"(?s)2 of 4 .*source shiba_inu: .*target elefant: .*'elephant'"):
        link(tasks, unknown_names="error")
    with pytest.raises(UserError, match=r"'errors'.*'error'"):
        link(tasks, unknown_names="errors")
    with pytest.raises(UserError, match=r"dog\.n\.99, n99999999"):
        link({"source": ClassSet(["a"], ["dog.n.99"]), "target": ClassSet(["b"], ["n99999999"])})


def test_a_chosen_synset_or_a_single_sense_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        link_one(ClassSet(["crane", "zebra", "mouse (rodent)"], ["crane.n.05", None, None]))


def test_unknown_names_are_listed_together_with_suggestions() -> None:
    with pytest.raises(UserError) as error:
        link_one(ClassSet(["elefant", "dog", "qqqqzzzz"]), unknown_names="error")
    text = str(error.value)
    assert "elefant: did you mean 'elephant'" in text
    assert "qqqqzzzz: nothing is close" in text
    assert "ClassSet(names, synsets)" in text
    assert "class,synset" in text


@pytest.mark.parametrize("class_name", ["Boeing 747-400", "707-320", "A320", "MD-80", "DC-10", "!", "-101"])
def test_numbers_that_belong_to_a_name_are_not_dropped(class_name: str) -> None:
    with pytest.raises(UserError, match=rf"  target {re.escape(class_name)}: "):
        link_one(ClassSet([class_name]), unknown_names="error")


def test_synsets_that_do_not_exist() -> None:
    with pytest.raises(UserError, match=r"n00000001, dog\.n\.99"):
        link_one(ClassSet(["a", "b", "c"], ["n00000001", "dog.n.99", "dog.n.01"]))
    with pytest.raises(UserError, match="n99999999"):
        link_one(ClassSet(["n99999999-thing"]))


@pytest.mark.parametrize(("dataset", "size"), [("fashion", 10), ("pictograms", 200)])
def test_mapping_of_an_embedded_dataset(dataset: str, size: int) -> None:
    path = ASSETS / dataset / "classes.csv"
    links = link_one(ClassSet.from_csv(path))
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


def test_a_warning_lists_the_first_twenty() -> None:
    names = sorted(
        [
            "apple",
            "bat",
            "bear",
            "bed",
            "bee",
            "bowl",
            "bus",
            "can",
            "cat",
            "chair",
            "clock",
            "cup",
            "dog",
            "fox",
            "horse",
            "house",
            "lamp",
            "lion",
            "mouse",
            "orange",
            "owl",
            "pig",
            "plate",
            "ray",
            "rose",
            "seal",
            "shark",
            "sheep",
            "snail",
            "spider",
            "table",
            "tank",
            "tiger",
            "train",
        ]
    )
    with pytest.warns(AmbiguousClassWarning) as caught:
        links = link_one(ClassSet(names))
    ambiguous = [each for each in links if each.others]
    assert len(ambiguous) > 20
    (message,) = (str(each.message) for each in caught)
    assert f"{len(ambiguous)} of {len(names)} class names" in message
    assert f"and {len(ambiguous) - 20} more: `python -m jtln classes`" in message
    assert ambiguous[19].name in message
    assert f"\n  {ambiguous[20].name} ->" not in message
