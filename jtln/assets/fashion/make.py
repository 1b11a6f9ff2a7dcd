"""Make `fashion.npz` from the four original Fashion-MNIST files: `python -m jtln.assets.fashion.make DIR`.

DIR holds `train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz`, `t10k-images-idx3-ubyte.gz` and
`t10k-labels-idx1-ubyte.gz` (as in Debian's package `dataset-fashion-mnist`). Which images are kept is seeded,
so the same originals give the same file.

What is kept: of each default source class 800 training and 200 test images, of each default target class 300
training and all 1000 test images; 11,200 images in all. The arrays, for SPLIT in `train` and `test`:

    SPLIT_images  (N, 28, 28) uint8, sorted by class and then by official index
    SPLIT_labels  (N,) uint8, the official label 0..9
    SPLIT_index   (N,) uint16, the image's place in the official file of that split
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

TARGET = (2, 6, 7, 8)  # Pullover, Shirt, Sneaker, Bag: few to learn from, many to test on
FILES = {"train": "train", "test": "t10k"}
KEEP = {"train": {"source": 800, "target": 300}, "test": {"source": 200, "target": 1000}}
SEED = 0


def read_idx(path: Path) -> np.ndarray:
    """Return the array in an idx file of unsigned bytes; its header: 0, 0, 8, rank, a big-endian int a size."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", count=rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def choose(labels: np.ndarray, split: str) -> np.ndarray:
    """Return the official indices that are kept of one split, sorted by class and index; (N,) int64."""
    kept = []
    for label in range(10):
        members = np.flatnonzero(labels == label)
        count = KEEP[split]["target" if label in TARGET else "source"]
        generator = np.random.default_rng([SEED, label])
        kept.append(np.sort(generator.permutation(members)[:count]))
    return np.concatenate(kept)


def make(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of `fashion.npz`, from the four files in ``folder``."""
    arrays = {}
    for split, prefix in FILES.items():
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        index = choose(labels, split)
        arrays[f"{split}_images"] = images[index]
        arrays[f"{split}_labels"] = labels[index]
        arrays[f"{split}_index"] = index.astype(np.uint16)
    return arrays


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m jtln.assets.fashion.make DIR (the folder of the four .gz files)")
    target = Path(__file__).with_name("fashion.npz")
    # NumPy stamps every member with 1980-01-01, so the bytes depend on the arrays and zlib alone.
    np.savez_compressed(target, **make(Path(sys.argv[1])))  # type: ignore[arg-type]
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")
