"""CPU seconds of a study's run on cached features, beside a bare logistic regression of the same sizes.

    python tests/benchmarks/study.py [--classes 100] [--shots 1 2 5] [--seeds 1] [dataset=caltech101 ...]

A study of 8 configurations with and without the transported prior, at several numbers of labels and several seeds, by
`python train.py -m study=prior` in one process. Overrides choose the images and the cache (``dataset=caltech101
dataset.root=DIR cache=DIR``); without any, this script makes pictures of as many classes, which are called after
ImageNet's.

The same command three times: the first computes the features and makes the runs of one seed; the second makes those of
further seeds; the third finds all of them done. So the second less the third, over its runs, is what one run costs in a
process that is warm. The bare loop fits scikit-learn's regression to random features of these sizes and predicts.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression

from jtln.data.collections.base import classes_of

CONFIGURATIONS = (
    "cosine", "cosine_wordnet", "logistic", "logistic_wordnet", "logistic_uniform", "logistic_permuted", "tukey",
    "tukey_wordnet",
)  # fmt: skip
ASKED = 8 * 3 * 10  # runs that are to end in MINUTES on CORES
MINUTES, CORES = 10, 2
PIXELS, DIM, TESTED = 32, 1280, 17  # of the pictures; features; tested images a class


def make_pictures(folder: Path, classes: int, images: int) -> None:
    """Noise around a colour of each class's own."""
    draw = np.random.default_rng(0)
    for name in classes_of("imagenet")[0].names[:classes]:
        (folder / name).mkdir(parents=True)
        colour = draw.integers(0, 200, 3)
        for index in range(images):
            pixels = colour + draw.integers(0, 56, (PIXELS, PIXELS, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")


def study_seconds(folder: Path, seeds: list[int], shots: list[int], overrides: list[str]) -> float:
    """Return the CPU seconds of the process that makes the study's runs that are not done yet."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "jtln", "train", "-m", "study=prior", f"study.only={list(CONFIGURATIONS)}",
         f"study.shots={shots}", f"study.seeds={seeds}", "study.workers=1", f"study.folder={folder}",
         f"hydra.sweep.dir={folder}/report", "trainer=cpu", *overrides],
        check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bare_seconds(classes: int, shots: int) -> float:
    draw = np.random.default_rng(0)
    features, tested = draw.normal(size=(classes * shots, DIM)), draw.normal(size=(classes * TESTED, DIM))
    features, tested = (5 * each / np.linalg.norm(each, axis=1, keepdims=True) for each in (features, tested))
    warnings.filterwarnings("ignore", module="sklearn")  # of as many classes as images
    started = time.process_time()
    LogisticRegression(C=30, max_iter=1000).fit(features, np.arange(len(features)) % classes).predict(tested)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the images and the cache")
    parser.add_argument("--classes", type=int, default=100, help="how many are made")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 5])
    parser.add_argument("--seeds", type=int, default=1, help="that are measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, overrides = Path(name), options.overrides
        if not overrides:
            make_pictures(folder / "pictures", options.classes, max(options.shots) + TESTED)
            overrides = ["dataset=folder", f"dataset.target.root={folder / 'pictures'}", "dataset.test=0.7"]
            overrides += [f"dataset.image_size={PIXELS}", f"cache={folder / 'cache'}"]
        measured = list(range(1, 1 + options.seeds))
        cold = study_seconds(folder / "study", [0], options.shots, overrides)
        warm = study_seconds(folder / "study", [0, *measured], options.shots, overrides)
        done = study_seconds(folder / "study", [0, *measured], options.shots, overrides)
    runs = len(CONFIGURATIONS) * len(options.shots) * len(measured)
    a_run = (warm - done) / runs
    bare = sum(bare_seconds(options.classes, shots) for shots in options.shots) / len(options.shots)
    asked = 60 * MINUTES * CORES / ASKED
    print(f"{runs} runs, labels a class: {options.shots}; CPU seconds")
    print(f"features and the first {runs // len(measured)} runs {cold:6.1f}; start and report {done:.1f}")
    print(
        f"a run                     {a_run:6.2f}, of {asked:.1f} for {ASKED} runs in {MINUTES} minutes on {CORES} cores"
    )
    print(f"bare logistic regression  {bare:6.2f}, ratio {a_run / bare:.1f}")


if __name__ == "__main__":
    main()
