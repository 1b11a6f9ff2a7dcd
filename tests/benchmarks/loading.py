"""Images per second of the loader, beside torchvision's ImageFolder with the standard transforms.

    python tests/benchmarks/loading.py [--images 400] [--workers 2]

On synthetic photographs (500 x 375 JPEGs with the spectrum of natural images), all read by the same number of
processes:

- torchvision: ImageFolder, RandomResizedCrop(224), RandomHorizontalFlip, ToTensor, Normalize;
- files: this project's loader on the files; decoded: on the memory-mapped cache (and without processes, as by default);
- each with and without the transform of the batch (random crop to 224, flip, normalise), here on the CPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from jtln.data.cache import with_image_cache
from jtln.data.files import FileImages, Reader
from jtln.data.images import ImageSet
from jtln.data.loaders import PairData
from jtln.data.pairs import Pair, Task
from jtln.data.transforms import Augment, ToFloat
from jtln.names.class_set import ClassSet

STORED, SEEN, BATCH = 256, 224, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_photographs(folder: Path, count: int, width: int = 500, height: int = 375) -> list[Path]:
    """JPEGs (quality 90) whose amplitudes fall with the frequency, as those of photographs do, and with some edges."""
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    paths = []
    for index in range(count):
        phase = np.exp(2j * np.pi * random.random((3, *frequency.shape)))
        phase = 0.8 * phase[:1] + 0.2 * phase  # the channels of photographs are alike
        field = np.fft.irfft2(phase / frequency**1.1, s=(height, width))
        field = field / field.std((1, 2), keepdims=True)
        y, x = np.mgrid[:height, :width]
        for _ in range(12):  # objects: discs with sharp edges
            cy, cx, radius = random.random(3) * (height, width, 90)
            field[:, np.hypot(y - cy, x - cx) < radius] += random.normal(size=(3, 1))
        pixels = (128 + 45 * field).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        path = folder / f"class{index % 4}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
        paths.append(path)
    return paths


def ours(images: ImageSet, workers: int) -> Iterable[Any]:
    classes = ClassSet(("a", "b", "c", "d"))
    pair = Pair("photographs", *2 * [Task(classes, images, images, images)], image_size=SEEN)
    data = PairData(pair, len(images) // BATCH, source_batch_size=BATCH, use_target=False, num_workers=workers)
    return data.train_dataloader().flattened[0]


def rate(batches: Iterable[Any], transform: Callable[[torch.Tensor], torch.Tensor] | None = None) -> float:
    """Images per second of the second pass: the first starts the processes."""
    for _ in range(2):
        started, seen = time.perf_counter(), 0
        for images, _labels in batches:
            seen += len(images if transform is None else transform(images))
    return seen / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="the best of which counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_photographs(folder / "photographs", options.images)
        size = sum(path.stat().st_size for path in paths) / len(paths)
        print(f"{len(paths)} JPEGs of 500 x 375 pixels, {size / 1e3:.0f} kB each; {options.workers} processes")
        files = FileImages(paths, [index % 4 for index in range(len(paths))], Reader(STORED), folder / "photographs")
        started = time.perf_counter()
        kept, _ = with_image_cache(files, folder / "cache", True, "skip")
        print(f"decoding them once: {len(paths) / (time.perf_counter() - started):.0f} images/s")
        standard = transforms.Compose(
            [
                transforms.RandomResizedCrop(SEEN),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )
        reference = DataLoader(
            ImageFolder(str(folder / "photographs"), standard),
            BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=options.workers,
            persistent_workers=options.workers > 0,
        )
        on_batch = nn.Sequential(Augment(shift=0, crop=0.08, size=SEEN), ToFloat(MEAN, STD))
        measured: dict[str, Callable[[], float]] = {
            "torchvision": lambda: rate(reference),
            "files": lambda: rate(ours(files, options.workers)),
            "files, transformed": lambda: rate(ours(files, options.workers), on_batch),
            "decoded": lambda: rate(ours(kept, options.workers)),
            "decoded, transformed": lambda: rate(ours(kept, options.workers), on_batch),
            "decoded, no processes": lambda: rate(ours(kept, 0)),
            "decoded, no processes, transformed": lambda: rate(ours(kept, 0), on_batch),
        }
        best = dict.fromkeys(measured, 0.0)
        for _ in range(options.rounds):
            for label, measure in measured.items():
                best[label] = max(best[label], measure())
        for label, value in best.items():
            print(f"{label:<36} {value:7.0f} images/s  {value / best['torchvision']:5.2f}x")


if __name__ == "__main__":
    main()
