"""Images per second of the pass that computes features, beside a bare PyTorch loop over the same network.

    python tests/benchmarks/features.py [--images 512] [--workers 2] [--root FOLDER] [--size 224] [--device cpu]

Both make features of EfficientNet-Lite0 out of the same image files, photographs that this script makes or those of a
folder with a folder a class, with as many processes that read images:

- bare: torchvision's ImageFolder, resize and crop, a DataLoader, and the network, channels last, in inference mode;
- files: this project's pass, which reads the files while the network computes, and writes the features to the cache;
- decoded: the same as ``jtln features`` does it by default, the decoded images being kept first; with that included.

Each starts from nothing kept. Of several rounds, in turn, the quickest counts; CPU seconds are those of all processes,
and steadier where others use the machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from loading import make_photographs
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from jtln.data.category_pair import CategoryPair
from jtln.data.collections.classifier import Classifier
from jtln.data.collections.folder import Folder
from jtln.training.frozen import PARTS, feature_data
from jtln.training.trainer import Budget, pair_data
from jtln.trunks import Trunk, efficientnet_lite

BATCH = 64


def bare(root: Path, trunk: Trunk, size: int, workers: int, device: torch.device) -> int:
    """Return how many images the loop has made features of."""
    transform = transforms.Compose(
        [
            transforms.Resize(round(size * 8 / 7)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(trunk.mean, trunk.std),
        ]
    )
    images = ImageFolder(str(root), transform)
    loader = DataLoader(images, BATCH, num_workers=workers, pin_memory=device.type == "cuda")
    found = []
    with torch.inference_mode():
        for pixels, _ in loader:
            pixels = pixels.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            found.append(trunk.body(pixels).cpu())
    return len(torch.cat(found))


def ours(root: Path, trunk: Trunk, size: int, workers: int, device: torch.device, decoded: bool) -> int:
    """Return how many images this project's pass has made features of, the search for them and the cache included."""
    with tempfile.TemporaryDirectory() as cache:
        spec = CategoryPair(
            "photographs", Folder(root), Classifier(), overlap="keep", validation=0, image_size=size,
            stored_size=round(size * 8 / 7), decoded=decoded, cache=cache,
        )  # fmt: skip
        pair = spec.load()
        data = pair_data(pair, trunk, Budget(1, 1, 1, 1), seed=0, augment=None, num_workers=workers)
        if decoded:
            data.num_workers = None  # none, as pixels are mapped into memory
        feature_data(data, trunk, device, cache=Path(cache))
        return sum(len(getattr(pair.target, part)) for part in PARTS)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="how many are made where there is no --root")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    trunk = efficientnet_lite(options.size).eval().to(device)
    with tempfile.TemporaryDirectory() as name:
        root = options.root or Path(name) / "photographs"
        if options.root is None:
            make_photographs(root, options.images)
        given = (root, trunk, options.size, options.workers, device)
        passes: dict[str, Callable[[], int]] = {
            "bare": partial(bare, *given),
            "files": partial(ours, *given, decoded=False),
            "decoded": partial(ours, *given, decoded=True),
        }
        wall, cpu = dict.fromkeys(passes, 0.0), dict.fromkeys(passes, 0.0)
        for _ in range(options.rounds):
            for label, features in passes.items():
                started, used = time.perf_counter(), cpu_seconds()
                images = features()
                wall[label] = max(wall[label], images / (time.perf_counter() - started))
                cpu[label] = max(cpu[label], images / (cpu_seconds() - used))
    print(
        f"{images} images at {options.size} pixels, {trunk.name} on {device}, {torch.get_num_threads()} threads, "
        f"{options.workers} processes"
    )
    for label in passes:
        print(
            f"{label:<8} {wall[label]:7.1f} images/s  {wall[label] / wall['bare']:5.2f}x"
            f"{cpu[label]:10.1f} images per CPU second  {cpu[label] / cpu['bare']:5.2f}x"
        )


if __name__ == "__main__":
    main()
