"""The packaged tables of classes: complete, and every link to WordNet deliberate."""

import csv
from collections import Counter
from pathlib import Path

import pytest
from torchvision.datasets import Flowers102
from torchvision.models._meta import _IMAGENET_CATEGORIES

import jtln
from jtln.costs import TaxonomyCost
from jtln.data.selection import select
from jtln.names import wordnet
from jtln.names.class_set import ClassSet
from jtln.names.linking import Link, link_all

FOLDER = Path(jtln.__file__).parent / "assets" / "classes"
COUNTS = {  # as published
    "aircraft": 100,
    "caltech101": 101,
    "caltech256": 256,
    "cars": 196,
    "cifar10": 10,
    "cifar100": 100,
    "cub200": 200,
    "dtd": 47,
    "flowers102": 102,
    "food101": 101,
    "imagenet": 1000,
    "office31": 31,
    "pets": 37,
    "places365": 365,
}
# The hardest of each dataset, seen by hand; what is in brackets is the name's most frequent meaning in WordNet.
HARDEST = {
    "caltech101": {
        "bass": "bass.n.08",  # the fish (a pitch)
        "emu": "emu.n.02",  # the bird (electromagnetic units)
        "nautilus": "chambered_nautilus.n.01",  # the animal (a submarine)
        "seahorse": "seahorse.n.02",  # the fish (the walrus)
        "schooner": "schooner.n.02",  # the ship (a beer glass)
        "Garfield": "fictional_character.n.01",  # the cat (the president)
        "wildcat": "wildcat.n.03",  # the animal (an oil well)
        "tick": "tick.n.02",  # the animal (a sound)
    },
    "caltech256": {
        "bat": "bat.n.01",  # the animal; the club is the class baseball bat
        "computer mouse": "mouse.n.04",  # the device
        "CD": "compact_disk.n.01",  # (cadmium)
        "galaxy": "galaxy.n.03",  # of stars (a splendid assemblage of people)
        "toaster": "toaster.n.02",  # the appliance (who proposes a toast)
        "elk": "wapiti.n.01",  # the American one (the moose)
        "Superman": "fictional_character.n.01",  # (a demigod)
        "iris": "iris.n.01",  # the flower, not the eye's
        "saddle": "saddle.n.01",  # the horse's, not a bicycle's
        "skunk": "skunk.n.04",  # the animal (a despicable person)
    },
    "cifar10": {
        "automobile": "car.n.01",
        "bird": "bird.n.01",
        "cat": "cat.n.01",
        "frog": "frog.n.01",
        "horse": "horse.n.01",  # not the gymnast's
        "truck": "truck.n.01",  # not the hand truck
    },
    "cifar100": {
        "seal": "seal.n.09",  # the animal (sealing wax)
        "mouse": "mouse.n.01",  # a small mammal, not the device
        "ray": "ray.n.07",  # the fish (a beam of light)
        "tank": "tank.n.01",  # the vehicle, not the vessel
        "shrew": "shrew.n.02",  # the animal (a bad-tempered woman)
        "table": "table.n.02",  # furniture (rows and columns)
        "plate": "plate.n.04",  # to eat from (home plate)
        "beaver": "beaver.n.07",  # the animal (its fur)
    },
    "dtd": {
        "striped": "stripe.n.05",  # (an adornment)
        "chequered": "check.n.10",  # a pattern (a bank check)
        "scaly": "scale.n.10",  # an animal's (a standard)
        "grid": "grid.n.01",  # a pattern, not the power grid
        "veined": "vein.n.03",  # a leaf's (a blood vessel)
        "studded": "stud.n.02",  # an ornament (a man)
    },
    "imagenet": {
        "crane (bird)": "crane.n.05",  # (Stephen Crane, the writer)
        "crane (machine)": "crane.n.04",  # lifts loads
        "jaguar": "jaguar.n.01",  # the animal
        "kite": "kite.n.04",  # the bird (a bank check)
        "mouse": "mouse.n.04",  # the device (the rodent)
        "bow": "bow.n.04",  # the weapon (a knot)
        "sea lion": "sea_lion.n.01",
        "baseball": "baseball.n.02",  # the ball (the game)
        "nail": "nail.n.02",  # the fastener (of a finger)
        "drake": "drake.n.02",  # the duck (Sir Francis)
    },
    "office31": {
        "mouse": "mouse.n.04",  # the device (the rodent)
        "monitor": "computer_monitor.n.01",  # (a proctor)
        "ruler": "rule.n.12",  # the stick (a king)
        "punch": "punch.n.03",  # the tool (a blow)
        "printer": "printer.n.02",  # the device (a pressman)
        "speaker": "loudspeaker.n.01",  # the device (who speaks)
        "bike": "bicycle.n.01",  # (a motorcycle)
        "phone": "telephone.n.01",
    },
    "pets": {
        "boxer": "boxer.n.04",  # the dog (the athlete)
        "Chihuahua": "chihuahua.n.03",  # the dog (the city)
        "Samoyed": "samoyed.n.03",  # the dog (a people)
        "Siamese": "siamese_cat.n.01",  # the cat (a language)
        "Bombay": "domestic_cat.n.01",  # the cat (Mumbai)
        "Newfoundland": "newfoundland.n.01",  # the dog, not the island
        "Ragdoll": "domestic_cat.n.01",  # the cat (a doll)
    },
    "cub200": {
        "Cardinal": "cardinal.n.04",  # the bird (a bishop)
        "Nighthawk": "nighthawk.n.02",  # the bird (who stays up late)
        "Geococcyx": "roadrunner.n.01",  # the bird (its genus)
        "Spotted Catbird": "bowerbird.n.01",  # of Australia, not the American catbird
        "Tree Sparrow": "tree_sparrow.n.02",  # the American one
        "Great Grey Shrike": "european_shrike.n.01",  # Lanius excubitor
        "Ovenbird": "ovenbird.n.01",  # the warbler, not the South American bird
        "Rock Wren": "rock_wren.n.02",  # of America (of New Zealand)
    },
    "flowers102": {
        "bird of paradise": "bird_of_paradise.n.02",  # Strelitzia, neither the shrub nor the bird
        "bishop of llandaff": "dahlia.n.01",
        "balloon flower": "campanula.n.01",  # Platycodon (a penstemon)
        "silverbush": "convolvulus.n.01",  # (other shrubs)
        "love in the mist": "love-in-a-mist.n.03",  # Nigella (a passion flower)
        "black-eyed susan": "black-eyed_susan.n.03",  # Rudbeckia (a vine)
        "magnolia": "magnolia.n.02",  # the tree (its bark)
        "rose": "rose.n.01",  # neither the wine nor the colour
        "ball moss": "air_plant.n.01",  # no moss
    },
    "food101": {
        "oysters": "huitre.n.01",  # the food (the living mollusk)
        "mussels": "mussel.n.01",  # the food
        "scallops": "scallop.n.02",  # the food (a curve)
        "donuts": "doughnut.n.02",  # the cake (a ring)
        "hot dog": "hotdog.n.02",  # the sandwich (a show-off)
        "tacos": "taco.n.02",  # the food (a slur)
        "miso soup": "soup.n.01",  # not the paste
        "peking duck": "duck.n.03",  # the food (the bird)
        "grilled salmon": "salmon.n.03",  # the food (the fish)
    },
    "places365": {
        "bar": "barroom.n.01",
        "bank vault": "vault.n.02",  # not the gymnast's
        "booth (indoor)": "booth.n.02",  # a stall (a table in a restaurant)
        "bow window (indoor)": "bay_window.n.02",
        "carrousel": "carousel.n.02",  # to ride on (for luggage)
        "crosswalk": "crossing.n.05",
        "barndoor": "door.n.01",  # a barn's (a lamp's)
        "church (indoor)": "church.n.02",  # the building (the faith)
        "diner (outdoor)": "diner.n.03",  # the restaurant (who eats)
        "field (wild)": "grassland.n.01",
        "ruin": "ruin.n.02",  # the building (the state)
        "yard": "yard.n.02",  # beside a house (three feet)
    },
}


def table(name: str) -> list[dict[str, str]]:
    with open(FOLDER / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_dataset_has_its_table() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.csv")) == sorted(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_is_complete(name: str) -> None:
    rows = table(name)
    assert len(rows) == COUNTS[name]
    assert {"class", "synset"} <= set(rows[0]) <= {"class", "folder", "synset", "path", "note"}
    assert all(None not in row and value == value.strip() for row in rows for value in row.values())
    # unique whatever the case, since some file systems do not tell Cardigan, the dog, from cardigan
    assert len({row["class"].casefold() for row in rows} - {""}) == len(rows)
    assert len({(row.get("folder") or row["class"]).casefold() for row in rows}) == len(rows)
    assert ClassSet.from_csv(FOLDER / f"{name}.csv").names == tuple(row["class"] for row in rows)


@pytest.mark.parametrize("name", COUNTS)
def test_every_class_is_linked_or_says_why_not(name: str) -> None:
    rows = table(name)
    wordnet.find_rows(row["synset"] for row in rows if row["synset"])  # raises one message with all that do not exist
    if not all(row.get("path") for row in rows):
        assert not [row["class"] for row in rows if not row["synset"] and not row["note"]]


@pytest.mark.parametrize("name", COUNTS)
def test_no_synset_twice_without_a_word_why(name: str) -> None:
    rows = [row for row in table(name) if row["synset"]]
    times = Counter(wordnet.resolve(row["synset"]) for row in rows)
    shared = [row for row in rows if times[wordnet.resolve(row["synset"])] > 1]
    assert not [row["class"] for row in shared if not row.get("note")]


@pytest.mark.parametrize("name", COUNTS)
def test_a_synset_of_another_name_has_a_word_why(name: str) -> None:
    silent = [row for row in table(name) if row["synset"] and not row.get("note")]
    assert not [row["class"] for row in silent if wordnet.resolve(row["synset"]) not in meanings(row["class"])]


def meanings(class_name: str) -> set[str]:
    """Return the ids of all senses of a name, plural or singular, without a part in brackets."""
    (found,) = link_all(ClassSet([class_name.partition(" (")[0]]))
    return {found.synset, *found.others} if isinstance(found, Link) and found.how in ("id", "lemma") else set()


@pytest.mark.parametrize(("name", "hardest"), HARDEST.items())
def test_the_hardest(name: str, hardest: dict[str, str]) -> None:
    synsets = {row["class"]: row["synset"] for row in table(name)}
    assert len(hardest) >= 6
    assert {c: wordnet.name(synsets[c]) if synsets[c] else "" for c in hardest} == hardest


def test_imagenet_is_torchvisions() -> None:
    rows = table("imagenet")
    ids = [row["synset"] for row in rows]
    assert ids == [row["folder"] for row in rows] == sorted(ids)  # labels are in the order of the folders' names
    renamed = {"crane bird": "crane (bird)", "crane": "crane (machine)", "Cardigan": "Cardigan (dog)"}
    renamed |= {"cardigan": "cardigan (sweater)", "maillot": "maillot (tights)"}
    renamed |= {"maillot tank suit": "maillot (tank suit)"}
    assert [row["class"] for row in rows] == [renamed.get(name, name) for name in _IMAGENET_CATEGORIES]


def test_folders_are_numbered_in_label_order() -> None:
    folders = [row["folder"] for row in table("caltech256")]
    assert [int(folder[:3]) for folder in folders] == list(range(1, 257))
    for name in ("caltech101", "dtd", "office31", "cifar100"):  # torchvision sorts them; capitals come first
        folders = [row["folder"] or row["class"] for row in table(name)]
        assert folders == sorted(folders)
    for name in ("aircraft", "cub200", "food101", "places365"):
        folders = [row["folder"] or row["class"] for row in table(name)]
        assert folders == sorted(folders)
    assert [row["folder"] or row["class"] for row in table("flowers102")] == Flowers102.classes
    pets = [row["folder"] or row["class"] for row in table("pets")]
    assert pets == sorted(pets, key=str.casefold) == [" ".join(map(str.title, pet.split())) for pet in pets]


def test_the_collections_own_hierarchies() -> None:
    groups = Counter(row["path"] for row in table("cifar100"))
    assert len(groups) == 20
    assert set(groups.values()) == {5}
    assert Counter(row["path"] for row in table("pets")) == {"cat": 12, "dog": 25}
    # bodies and makes; orders and families of birds
    for name, levels in {"cars": (9, 49), "cub200": (13, 37)}.items():
        paths = [row["path"].split("/") for row in table(name)]
        assert all(part.strip() for path in paths for part in path)
        assert tuple(len({path[level] for path in paths}) for level in range(2)) == levels


def test_aircraft_lie_in_their_build_maker_and_family() -> None:
    paths = [tuple(row["path"].split("/")) for row in table("aircraft")]
    assert {len(path) for path in paths} == {5}
    assert all(part == part.strip() != "" for path in paths for part in path)
    makers, families = Counter(path[-2] for path in paths), {path[-1] for path in paths}
    assert (len(makers), makers["Boeing"], makers["Airbus"]) == (30, 22, 13)  # as published
    assert len(families) == len(set(paths)) == 70  # so that a family is in one place
    assert len({path[0] for path in paths}) == 5
    # no part at two levels, so that dataset.target_classes="PART/*" means one thing
    levels = [{path[level] for path in paths} for level in range(5)]
    assert sum(map(len, levels)) == len(set().union(*levels))


def test_the_nearest_airbus_is_built_like_the_boeing() -> None:
    classes = ClassSet.from_csv(FOLDER / "aircraft.csv")
    boeing, airbus = (select(classes, f"{maker}/*", "classes", [0], ()) for maker in ("Boeing", "Airbus"))
    distances = TaxonomyCost(scale="none").matrix(classes.subset(boeing), classes.subset(airbus))
    nearest = {
        name: {airbus[i] for i in (row == row.min()).nonzero().flatten().tolist()}
        for name, row in zip(boeing, distances, strict=True)
    }
    a320 = {f"Airbus A3{number}" for number in (18, 19, 20, 21)}
    a340 = {f"Airbus A340-{number}00" for number in (2, 3, 5, 6)}
    assert nearest["Boeing 737-800"] == nearest["Boeing 757-200"] == nearest["Boeing 717"] == a320
    assert nearest["Boeing 747-400"] == {*a340, "Airbus A380"}
    assert nearest["Boeing 777-200"] == {*airbus} - a320 - a340 - {"Airbus A380"}  # A300, A310, A330
    assert sorted(set(distances.flatten().tolist())) == [6, 8, 10]
