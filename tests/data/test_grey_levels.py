import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jtln.cli.train import main as train
from jtln.data.category_pair import CategoryPair
from jtln.data.collections.folder import Folder
from jtln.data.files import BadImage, Reader
from jtln.data.grey_levels import Levels, common_white, read_levels
from jtln.data.pairs import Pair
from jtln.errors import UserError
from jtln.inference import load
from jtln.inference.classifier import Description

SIDE = 64
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)  # (64, 64), 4096 levels

# TIFF's types of values, by what struct calls them.
SHORT, LONG, DOUBLE = (3, "H"), (4, "I"), (12, "d")
MAX, SMIN, SMAX = 281, 340, 341
Tag = tuple[tuple[int, str], float]


def tiff(path: Path, values: np.ndarray, bits: int = 16, **tags: Tag) -> Path:
    """Write a little-endian TIFF of one strip by the letter of the specification (TIFF 6.0, section 8).

    Args:
        values: (H, W), of whole numbers, or float32 where ``bits`` is 32.
        bits: 12 (packed), 16 or 32.
        tags: "tag281": (type, value).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = values.astype(f"<{values.dtype.kind}{bits // 8}").tobytes()
    height, width = values.shape
    fields: dict[int, Tag] = {256: (LONG, width), 257: (LONG, height), 258: (SHORT, bits), 259: (SHORT, 1)}
    fields |= {262: (SHORT, 1), 273: (LONG, 8), 277: (SHORT, 1), 278: (LONG, height), 279: (LONG, len(data))}
    fields |= {339: (SHORT, form)} | {int(name[3:]): tag for name, tag in tags.items()}
    data += b"\0" * (len(data) % 2)
    table, late, after = b"", b"", 8 + len(data) + 2 + 12 * len(fields) + 4
    for number, ((kind, code), value) in sorted(fields.items()):
        entry = struct.pack(f"<{code}", value if code == "d" else int(value))
        if len(entry) > 4:
            late, entry = late + entry, struct.pack("<I", after + len(late))
        table += struct.pack("<HHI", number, kind, 1) + entry.ljust(4, b"\0")
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(header + data + struct.pack("<H", len(fields)) + table + b"\0" * 4 + late)
    return path


def saved(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def grey(path: Path, white: float | None = None) -> np.ndarray:
    """The image (64, 64) as it is read."""
    return Reader(SIDE, channels=1, white=white)(path)[0].numpy()


def scaled(values: np.ndarray, white: float) -> np.ndarray:
    """By definition: 0 becomes 0, white becomes 255, and lighter levels become white."""
    return np.round(np.clip(values.astype(np.float64) / white, 0, 1) * 255)


def close(got: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(got.astype(np.float64) - expected).max() <= 1)


def whole(most: int) -> np.ndarray:
    return np.round(RAMP * most).astype(np.uint16)


def folder_of(root: Path, suffix: str, most: Callable[[int], float], write: Callable[[Path, float], Any]) -> Path:
    """Six images of each of four classes, with different extremes."""
    for index in range(24):
        write(root / "abcd"[index % 4] / f"{index:02d}.{suffix}", most(index))
    return root


def pair(root: Path, **settings: Any) -> Pair:
    usual: dict[str, Any] = {"target_classes": ["a", "b"], "image_size": SIDE, "shots": 2, "cache": root.parent / "c"}
    return CategoryPair("x", Folder(root), **{**usual, **settings}).load()


def images_of(loaded: Pair) -> dict[str, np.ndarray]:
    """Every image (64, 64) of the pair by its name."""
    parts = [getattr(task, part) for task in (loaded.source, loaded.target) for part in ("train", "val", "test")]
    return {name: part[k][0][0].numpy() for part in parts for k, name in enumerate(part.names)}


# One file, and what it declares.


@pytest.mark.parametrize("most", [65535, 30000, 4095, 200])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_declare_65535(tmp_path: Path, suffix: str, most: int) -> None:
    path = saved(tmp_path / f"x.{suffix}", whole(most))
    assert close(grey(path), scaled(whole(most), 65535))
    assert close(grey(path, white=most), scaled(whole(most), most))


@pytest.mark.parametrize("tag", [(MAX, SHORT), (SMAX, SHORT), (SMAX, DOUBLE)])
def test_twelve_bits_in_sixteen_where_a_tag_declares_them(tmp_path: Path, tag: tuple[int, Any]) -> None:
    for most in (4095, 1000):
        path = tiff(tmp_path / "x.tiff", whole(most), **{f"tag{tag[0]}": (tag[1], 4095)})
        assert close(grey(path), scaled(whole(most), 4095))
    assert len(np.unique(grey(path))) == 1 + round(255 * 1000 / 4095)


def test_twelve_bits_packed(tmp_path: Path) -> None:
    for most in (4095, 1000):
        assert close(grey(tiff(tmp_path / "x.tiff", whole(most), bits=12)), scaled(whole(most), 4095))


def test_a_tag_that_the_pixels_belie_is_not_believed(tmp_path: Path) -> None:
    path = tiff(tmp_path / "x.tiff", whole(60000), tag281=(SHORT, 255))
    assert close(grey(path), scaled(whole(60000), 65535))


def test_floats_from_0_to_1(tmp_path: Path) -> None:
    for factor in (1.0, 1.0001, 1.0005, 0.5):
        values = (RAMP * factor).astype(np.float32)
        got = grey(saved(tmp_path / "x.tiff", values))
        assert close(got, scaled(values, 1))
    got = grey(saved(tmp_path / "x.tiff", (RAMP * 1.0001).astype(np.float32)))
    assert 252 <= got.max() <= 255
    assert len(np.unique(got)) == 256


def test_floats_that_declare_their_range(tmp_path: Path) -> None:
    values = (RAMP * 6 - 2).astype(np.float32)
    path = tiff(tmp_path / "x.tiff", values, bits=32, tag340=(DOUBLE, -2.0), tag341=(DOUBLE, 4.0))
    assert close(grey(path), np.round(RAMP * 255))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((RAMP * 255).astype(np.float32), "0 to 255"),
        ((RAMP * 6 - 2).astype(np.float32), "-2 to 4"),
        ((RAMP * 4095).astype(np.int32), "0 to 4095"),
        ((RAMP * 4095 - 1024).astype(np.int16), "-1024 to 3071"),
    ],
)
def test_what_declares_nothing_is_asked_for(tmp_path: Path, values: np.ndarray, told: str) -> None:
    path = tiff(tmp_path / "x.tiff", values, bits=8 * values.itemsize)
    with pytest.raises(BadImage, match=rf"{told}.*white=NUMBER"):
        grey(path)
    assert close(grey(path, white=2000.0), scaled(values, 2000))


def test_formats_that_pillow_scales_itself(tmp_path: Path) -> None:
    for maxval in (4095, 65535):
        header = b"P5 %d %d %d\n" % (SIDE, SIDE, maxval)
        (tmp_path / "x.pgm").write_bytes(header + whole(maxval).astype(">u2").tobytes())
        for white in (None, 4095.0):
            assert close(grey(tmp_path / "x.pgm", white), np.round(RAMP * 255))
    with open(tmp_path / "x.pgm", "rb") as file:
        assert read_levels(file) is None


def test_eight_bits_do_not_change(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    for suffix in ("png", "bmp", "tiff", "pgm"):
        path = saved(tmp_path / f"x.{suffix}", values)
        assert np.array_equal(grey(path), values)
        assert np.array_equal(grey(path, white=4095.0), values)
        with open(path, "rb") as file:
            assert read_levels(file) is None


def test_nothing_that_is_not_finite_counts(tmp_path: Path) -> None:
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    path = saved(tmp_path / "x.tiff", values)
    with open(path, "rb") as file:
        levels = read_levels(file)
    assert levels is not None
    assert (levels.low, levels.high) == (values[0, 3], 1.0)
    assert grey(path)[0, :3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("white", [0, -1.0, float("inf"), float("nan")])
def test_senseless_white(tmp_path: Path, white: float) -> None:
    with pytest.raises(UserError, match=r"\bwhite\b"):
        Reader(8, white=white)
    for name in "abcd":
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"dataset\.white"):
        CategoryPair("x", Folder(tmp_path), white=white, target_classes=2)


# One level for a set.


def test_twelve_bits_in_sixteen_are_found_by_the_whole_set(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    root = folder_of(tmp_path / "x", "tiff", lambda k: 150 * (k + 1), lambda path, most: saved(path, whole(int(most))))
    loaded = pair(root)
    assert loaded.white == 4095
    assert [str(each.message)[:17] for each in recwarn if "white" in str(each.message)] == ["white level: 4095"]
    found = images_of(loaded)
    assert len(found) == 12 + 2 * (2 + 1 + 1)  # of a target class two are labelled, one validates, and one is tested
    for name, image in found.items():
        most = 150 * (int(Path(name).stem) + 1)
        assert close(image, scaled(whole(most), 4095))
    assert len(np.unique(np.stack(list(found.values())))) > 200


def test_sixteen_bits_that_use_them_keep_65535(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    root = folder_of(tmp_path / "x", "png", lambda k: 500 * (k + 1), lambda path, most: saved(path, whole(int(most))))
    loaded = pair(root)
    assert loaded.white is None
    assert not [each for each in recwarn if "white" in str(each.message)]
    for name, image in images_of(loaded).items():
        assert close(image, scaled(whole(500 * (int(Path(name).stem) + 1)), 65535))


def test_floats_of_a_set_are_scaled_alike(tmp_path: Path) -> None:
    def write(path: Path, most: float) -> None:
        saved(path, (RAMP * most).astype(np.float32))

    root = folder_of(tmp_path / "x", "tiff", lambda k: 1.0005 if k == 3 else 0.04 * (k + 1), write)
    for name, image in images_of(pair(root)).items():
        k = int(Path(name).stem)
        assert close(image, scaled(RAMP * (1.0005 if k == 3 else 0.04 * (k + 1)), 1))


@pytest.mark.parametrize(
    ("low", "high"),
    [(-2.1, 3.3), (0, 255), (0, 0.02), (0, 2.0)],
)
@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_floats_of_another_range_are_asked_for(tmp_path: Path, low: float, high: float, on_bad_image: str) -> None:
    def write(path: Path, most: float) -> None:
        saved(path, (low + RAMP * (most - low)).astype(np.float32))

    root = folder_of(tmp_path / "x", "tiff", lambda k: high if k == 5 else high / 2, write)
    with pytest.raises(UserError, match=r"dataset\.white=NUMBER") as caught:
        pair(root, on_bad_image=on_bad_image)
    assert str(root) in str(caught.value)
    assert f"{high:g}" in str(caught.value)
    loaded = pair(root, white=high, on_bad_image=on_bad_image)
    assert loaded.white == high
    for name, image in images_of(loaded).items():
        most = high if Path(name).stem == "05" else high / 2
        assert close(image, scaled(low + RAMP * (most - low), high))


def test_signed_and_long_whole_numbers(tmp_path: Path) -> None:
    def long(path: Path, most: float) -> None:
        tiff(path, np.round(RAMP * most).astype(np.int32), bits=32)

    def signed(path: Path, most: float) -> None:
        tiff(path, (RAMP * most - 1000).astype(np.int16))

    root = folder_of(tmp_path / "x" / "a", "tiff", lambda k: 40 * k, long)
    assert pair(root).white == 1023
    with pytest.raises(UserError, match=r"-1000 to .*dataset\.white=NUMBER"):
        pair(folder_of(tmp_path / "x" / "b", "tiff", lambda k: 100 * k, signed))
    with pytest.raises(UserError, match=r"0 to 230000 .*dataset\.white=NUMBER"):
        pair(folder_of(tmp_path / "x" / "c", "tiff", lambda k: 10000 * k, long))


def test_tags_with_each_images_own_maximum_are_not_believed(tmp_path: Path) -> None:
    """By the specification MaxSampleValue is a statistic, and some programs write it as one."""

    def write(path: Path, most: float) -> None:
        tiff(path, whole(int(most)), tag281=(SHORT, most))

    root = folder_of(tmp_path / "x", "tiff", lambda k: 150 * (k + 1), write)
    loaded = pair(root)
    assert loaded.white == 4095
    for name, image in images_of(loaded).items():
        assert close(image, scaled(whole(150 * (int(Path(name).stem) + 1)), 4095))


def test_a_range_that_all_tags_declare_is_believed(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    def write(path: Path, most: float) -> None:
        tiff(path, whole(int(most)), tag281=(SHORT, 10000))

    root = folder_of(tmp_path / "x", "tiff", lambda k: 150 * (k + 1), write)
    for name, image in images_of(pair(root)).items():
        assert close(image, scaled(whole(150 * (int(Path(name).stem) + 1)), 10000))
    assert not [each for each in recwarn if "white" in str(each.message)]


LEVEL = Levels(0, 100, whole=True, black=None, white=None, sixteen=True)
FLOAT = Levels(0, 0.9, whole=False, black=None, white=None, sixteen=False)


@pytest.mark.parametrize(
    ("levels", "white"),
    [
        ([], None),
        ([LEVEL], 255),
        ([LEVEL, LEVEL._replace(high=1023)], 1023),
        ([LEVEL, LEVEL._replace(high=1024)], 4095),
        ([LEVEL, LEVEL._replace(high=4096)], None),
        ([LEVEL, LEVEL._replace(high=4096, sixteen=False)], 65535),
        ([LEVEL._replace(black=0, white=4095), LEVEL], 4095),
        ([LEVEL._replace(black=0, white=4095), LEVEL._replace(high=9999)], None),
        ([LEVEL._replace(black=0, white=4095), LEVEL._replace(black=0, white=65535)], None),
        ([LEVEL._replace(black=0, white=255, high=300), LEVEL._replace(high=9999)], 65535),
        ([FLOAT, FLOAT._replace(high=1.09)], None),
        ([FLOAT._replace(high=0.0)], None),
        ([FLOAT, LEVEL._replace(high=9999)], None),
        ([FLOAT._replace(low=-3, high=3, black=-3, white=3)] * 2, None),
    ],
)
def test_the_level_of_a_set(levels: list[Levels], white: float | None) -> None:
    assert common_white({f"{k}.tiff": each for k, each in enumerate(levels)}) == white


@pytest.mark.parametrize(
    ("levels", "told"),
    [
        ([FLOAT, FLOAT._replace(low=-0.1)], r"-0\.1 .*1\.tiff"),
        ([FLOAT._replace(high=3, black=0, white=3), FLOAT._replace(high=4, black=0, white=4)], r"0 to 4 .*1\.tiff"),
        ([LEVEL, LEVEL._replace(low=-1, sixteen=False)], r"-1 to 100 .*1\.tiff"),
        ([LEVEL, FLOAT], r"0\.tiff.*1\.tiff"),
    ],
)
def test_levels_that_cannot_be_known(levels: list[Levels], told: str) -> None:
    with pytest.raises(UserError, match=told):
        common_white({f"{k}.tiff": each for k, each in enumerate(levels)})


def test_both_collections_have_one_level(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "x", "tiff", lambda k: 40 * k, lambda path, most: saved(path, whole(int(most))))
    second = folder_of(tmp_path / "y", "tiff", lambda k: 90 * k, lambda path, most: saved(path, whole(int(most))))
    for path in list(second.iterdir()):
        path.rename(path.with_name(f"{path.name}_"))
    loaded = CategoryPair("x", Folder(first), Folder(second), image_size=SIDE, shots=2, overlap="keep").load()
    assert loaded.white == 4095
    assert {part.reader.white for part in (loaded.source.train, loaded.target.test)} == {4095}  # type: ignore[attr-defined]


def test_a_given_white_that_is_too_low_is_warned_of(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "x", "tiff", lambda k: 150 * k, lambda path, most: saved(path, whole(int(most))))
    with pytest.warns(UserWarning, match=r"white level: 255.* 22 of 24 .* 3450"):
        assert pair(root, white=255).white == 255


def test_levels_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jtln.data.content._SETTLED", -1.0)
    root = folder_of(tmp_path / "x", "tiff", lambda k: 150 * k, lambda path, most: saved(path, whole(int(most))))
    with pytest.warns(UserWarning, match="white level: 4095"):
        first = pair(root)
    monkeypatch.setattr("jtln.data.content._memory", {})
    monkeypatch.setattr("jtln.data.content._read", None)  # no file is opened again
    with pytest.warns(UserWarning, match="white level: 4095"):
        again = pair(root)
    assert again.white == 4095
    assert again.target.test.fingerprint() == first.target.test.fingerprint()


# On the way to ``jtln predict``.


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own", "no_drawing")
def test_a_run_keeps_its_level_for_predictions(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "x", "tiff", lambda k: 150 * k, lambda path, most: saved(path, whole(int(most))))
    call = ["dataset=folder", "dataset/source=same", f"dataset.target.root={root}", "dataset.target_classes=[a,b]"]
    call += ["dataset/protocol=small", "dataset.image_size=16", "dataset.shots=2", "trunk.width=0.05", "pretrain=none"]
    call += ["dataset.validation=1", "dataset.source_validation=1", "epochs=1", "steps_per_epoch=1", "cost=uniform"]
    with pytest.warns(UserWarning, match="white level: 4095"):
        assert train([*call, "trainer.progress_bar=false", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    classifier = load(tmp_path / "run")
    assert classifier.reader.white == 4095
    path = saved(tmp_path / "dark.tiff", whole(1000))
    expected = torch.from_numpy(scaled(whole(1000), 4095))[None, None]
    expected = torch.nn.functional.interpolate(expected, (16, 16), mode="bilinear", antialias=True)
    assert (classifier.reader(path).double() - expected[0]).abs().max() <= 2


def test_a_description_holds_the_level() -> None:
    found = Description({}, ["a"], ["b"], 8, 8, 1, "crop", "none", 4095.0)
    assert Description(**asdict(found)).white == 4095.0
    without = {key: value for key, value in asdict(found).items() if key != "white"}
    assert Description(**without).white is None
