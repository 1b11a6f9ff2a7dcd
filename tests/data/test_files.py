import io
import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torchvision.transforms.v2 import functional as v2

from jtln.data.files import FITS, BadImage, FileImages, Reader
from jtln.errors import UserError


def scene(width: int = 80, height: int = 60) -> Image.Image:
    """A smooth picture in which left, right, top and bottom differ: red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / (width - 1), 255 * y / (height - 1), np.full(x.shape, 60)], -1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def expected(image: Image.Image, size: int) -> torch.Tensor:
    """torchvision's Resize and CenterCrop, on the RGB picture."""
    resized = v2.resize(v2.pil_to_tensor(image.convert("RGB")), [size], antialias=True)
    return v2.center_crop(resized, [size, size])


def close(got: torch.Tensor, wanted: torch.Tensor, most: float) -> bool:
    return got.shape == wanted.shape and bool((got.float() - wanted.float()).abs().max() <= most)


@pytest.mark.parametrize("side", [(96, 64), (64, 96), (48, 48), (24, 16), (36, 32)])
def test_crop_is_torchvisions(tmp_path: Path, side: tuple[int, int]) -> None:
    """Only for sizes at which torchvision's crop is on whole pixels; at odd sizes it is half a pixel off the centre."""
    path = tmp_path / "x.png"
    scene(*side).save(path)
    got = Reader(32)(path)
    assert got.dtype == torch.uint8
    assert close(got, expected(scene(*side), 32), 2)


@pytest.mark.parametrize("side", [(1000, 3), (3, 1000), (1, 1), (33, 32), (901, 701)])
def test_any_size(tmp_path: Path, side: tuple[int, int]) -> None:
    for kind, fit in itertools.product(("png", "jpg"), FITS):
        Image.new("RGB", side, (10, 120, 200)).save(tmp_path / f"x.{kind}", quality=95)
        got = Reader(32, fit)(tmp_path / f"x.{kind}")
        assert got.shape == (3, 32, 32)
        assert close(got[:, 15, 15], torch.tensor([10, 120, 200]), 3)


def test_squash_and_pad(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    scene(80, 40).save(path)
    whole = v2.pil_to_tensor(scene(80, 40))
    assert close(Reader(20, "squash")(path), v2.resize(whole, [20, 20], antialias=True), 1)
    padded = Reader(20, "pad")(path)
    assert close(padded[:, 5:15], v2.resize(whole, [10, 20], antialias=True), 1)
    assert (padded[:, :5] == 255).all()
    assert (padded[:, 15:] == 255).all()


def test_a_large_jpeg_is_decoded_smaller_but_looks_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    scene(1200, 800).save(path, quality=95)
    assert close(Reader(64)(path), expected(Image.open(path), 64), 4)
    assert close(Reader(64, channels=1)(path), v2.rgb_to_grayscale(expected(Image.open(path), 64)), 4)


MODES = {
    "1": "png",
    "L": "png",
    "P": "gif",
    "RGB": "webp",
    "RGBA": "png",
    "LA": "tiff",
    "PA": "tiff",
    "CMYK": "jpg",
    "YCbCr": "tiff",
    "LAB": "tiff",
    "I;16": "png",
    "I": "tiff",
    "F": "tiff",
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(tmp_path: Path, mode: str) -> None:
    grey = mode in ("1", "L", "LA", "I;16", "I", "F")
    picture = scene().convert("L") if grey else scene()
    path = tmp_path / f"x.{MODES[mode]}"
    if mode == "I;16":
        saved = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    elif mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        saved = ImageCms.applyTransform(picture, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    elif mode == "PA":
        saved = picture.convert("P").convert("PA")
    else:
        saved = picture.convert(mode)
    saved.save(path)
    rough = {"1": 140, "P": 60, "PA": 60, "CMYK": 12, "LAB": 40, "RGB": 20}.get(mode, 4)
    white = 255 if mode in ("I", "F") else None  # whose files do not declare it
    assert close(Reader(30, white=white)(path), expected(picture, 30), rough)
    assert close(Reader(30, channels=1, white=white)(path), expected(picture.convert("L"), 30)[:1], rough)


@pytest.mark.parametrize(
    ("values", "mode", "white"), [([0, 0.5, 1], "F", 1), ([0, 100, 200], "F", 255), ([0, 7e4, 2e5], "F", 2e5)]
)
def test_numbers_of_other_ranges(tmp_path: Path, values: list[float], mode: str, white: float) -> None:
    path = tmp_path / "x.tiff"
    Image.fromarray(np.repeat(np.array([values], dtype=np.float32), 3, 0), mode).save(path)
    wanted = torch.tensor(values) * 255 / white
    assert close(Reader(3, channels=1, white=white)(path)[0], wanted.expand(3, 3), 1)
    if white == 1:
        assert close(Reader(3, channels=1)(path)[0], wanted.expand(3, 3), 1)
    else:
        with pytest.raises(BadImage, match="white=NUMBER"):
            Reader(3, channels=1)(path)


def test_transparent_is_white(tmp_path: Path) -> None:
    rgba = scene(40, 40).convert("RGBA")
    rgba.putalpha(Image.fromarray(np.repeat(np.array([[0] * 20 + [255] * 20], dtype=np.uint8), 40, 0)))
    rgba.save(tmp_path / "x.png")
    got = Reader(40)(tmp_path / "x.png")
    assert (got[:, :, :20] == 255).all()
    assert torch.equal(got[:, :, 20:], v2.pil_to_tensor(scene(40, 40))[:, :, 20:])
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "p.png", transparency=0)
    assert Reader(2)(tmp_path / "p.png")[:, 0].T.tolist() == [[255, 255, 255], [200, 100, 50]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """A turned camera stores turned pixels and their orientation: the picture is the same."""
    stored = scene(64, 64)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    if orientation > 1:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.jpg", exif=exif, quality=95)
    assert close(Reader(16)(tmp_path / "x.jpg"), expected(scene(64, 64), 16), 6)


def test_damaged_exif_is_no_matter(tmp_path: Path) -> None:
    scene().save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\3")
    assert close(Reader(30)(tmp_path / "x.jpg"), expected(scene(), 30), 8)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("gif", "webp", "tiff"):
        frames[0].save(tmp_path / f"x.{kind}", save_all=True, append_images=frames[1:])
        assert close(Reader(4)(tmp_path / f"x.{kind}"), torch.tensor([255, 0, 0]).view(3, 1, 1).expand(3, 4, 4), 8)


def jpeg() -> bytes:
    file = io.BytesIO()
    scene().save(file, "JPEG")
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    scene().save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("cut.jpg", jpeg()[:-300], "truncated"),
        ("cut.png", png()[: len(png()) // 2], "truncated"),
        ("text.jpg", b"<html>404 not found</html>", "not an image"),
        ("empty.png", b"", "the file is empty"),
        ("header.jpg", jpeg()[:20], "."),
        ("wrong.png", png()[:40] + b"\xff" * 30 + png()[70:], "."),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadImage, match=reason) as caught:
        Reader(8)(path)
    assert str(path) in str(caught.value)
    assert "on_bad_image=skip" in str(caught.value)
    assert "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.path, again.reason) == (
        BadImage,
        str(caught.value),
        str(path),
        caught.value.reason,
    )


def test_files_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="no such file"):
        Reader(8)(tmp_path / "none.jpg")
    with pytest.raises(BadImage, match="directory"):
        Reader(8)(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    scene().save(path)
    path.chmod(0)
    with pytest.raises(BadImage, match="permission denied"):
        Reader(8)(path)


def test_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    scene().save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(BadImage, match="4,000 pixels"):
        Reader(8)(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "1 pixel a side"),
        ({"size": 8, "channels": 4}, "1 .grey. or 3"),
        ({"size": 8, "fit": "cut"}, "pad"),
    ],
)
def test_senseless_readers(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Reader(**settings)


@pytest.fixture
def files(tmp_path: Path) -> FileImages:
    paths = []
    for index in range(5):
        paths.append(tmp_path / f"c{index % 2}" / f"{index}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.new("RGB", (10, 8), (50 * index, 0, 0)).save(paths[-1])
    return FileImages(paths, [0, 1, 0, 1, 0], Reader(4), tmp_path)


def test_a_set_of_files(files: FileImages) -> None:
    assert files.names == ["c0/0.png", "c1/1.png", "c0/2.png", "c1/3.png", "c0/4.png"]
    images, labels = files.__getitems__([4, 1])
    assert images.shape == (2, 3, 4, 4)
    assert images[:, 0, 0, 0].tolist() == [200, 50]
    assert labels.tolist() == [0, 1]
    assert not files.in_memory
    part = files.subset([3, 0])
    assert isinstance(part, FileImages)
    assert part.names == ["c1/3.png", "c0/0.png"]
    assert part.labels.tolist() == [1, 0]
    assert part[0][0][0, 0, 0] == 150
    assert files.subset([3, 0], torch.tensor([7, 8])).labels.tolist() == [7, 8]
    assert FileImages(files.paths, files.labels, files.reader).names == files.paths
    with pytest.raises(UserError, match=r"5 .* 2 "):
        FileImages(files.paths, [0, 1], files.reader)


def test_fingerprint_is_of_names_contents_labels_and_reader(files: FileImages) -> None:
    first = files.fingerprint()
    assert len(first) == 32
    assert files.subset(range(5)).fingerprint() == first
    root, reader = files.root, files.reader
    variants = [
        FileImages(files.paths, files.labels, Reader(5), root),
        FileImages(files.paths, files.labels, Reader(4, "pad"), root),
        FileImages(files.paths, files.labels, Reader(4, white=4095), root),
        FileImages(files.paths, files.labels.flip(0) + 1, reader, root),
        FileImages(files.paths, files.labels, reader),
        files.subset([1, 0, 2, 3, 4]),
        files.subset([0, 1]),
    ]
    prints = {first, *(variant.fingerprint() for variant in variants)}
    assert len(prints) == len(variants) + 1
    path = Path(files.paths[2])
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(b"\0" * status.st_size)  # of the same size and time of change
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files.fingerprint() == first  # what was found when they were first looked at
    assert files.looked_at_again().fingerprint() not in prints
    path.write_bytes(content)  # and later
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert files.looked_at_again().fingerprint() == first
    path.unlink()
    assert files.looked_at_again().fingerprint() not in prints


def test_a_transparent_grey_of_sixteen_bits(tmp_path: Path) -> None:
    """It is converted to eight bits like any other, with transparent pixels on white."""
    grey = (np.arange(1600, dtype=np.uint16) * 40).reshape(40, 40)
    Image.fromarray(grey).save(tmp_path / "plain.png")
    Image.fromarray(grey).save(tmp_path / "clear.png", transparency=40 * 1599)
    plain, clear = Reader(40)(tmp_path / "plain.png"), Reader(40)(tmp_path / "clear.png")
    assert torch.equal(clear[:, -1, -1], torch.full((3,), 255, dtype=torch.uint8))
    assert plain[0, -1, -1] < 255
    assert torch.equal(clear.flatten(1)[:, :-1], plain.flatten(1)[:, :-1])
