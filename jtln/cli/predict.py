"""``jtln predict``: what a trained network takes images for."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from jtln.cli.options import guarded, path_argument
from jtln.errors import UserError

if TYPE_CHECKING:
    import torch

    from jtln.data.files import BadImage
    from jtln.inference.classifier import Explained


def main(arguments: list[str]) -> int:
    """Print the class of every image as CSV; returns the exit code: 1 where some could not be read."""
    parser = argparse.ArgumentParser(
        prog="jtln predict",
        description="What a trained network takes images for, as CSV: image, class, probability.",
        epilog="For instance: jtln predict outputs/fashion/2026-11-22_20-00-00 photos/ --top 3 --output predicted.csv",
    )
    add_run(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, or a folder, which is looked through")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="so many classes an image; default: 1")
    parser.add_argument("--views", help="none, flip or ten_crop; default: as in the run's test")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: an accelerator where there is one")
    parser.add_argument("--batch-size", type=int, default=64, metavar="B", help="images at once; default: 64")
    parser.add_argument(
        "--explain", action="store_true", help="add the source classes that the prior reads the class from"
    )
    parser.add_argument("--output", type=path_argument, metavar="FILE", help="default: the terminal")
    return guarded(parser, arguments, _predict)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose the network."""
    parser.add_argument("run", type=path_argument, metavar="RUN", help="a run's folder, or its best.ckpt")
    parser.add_argument("--head", default="target", help="target (default) or source: whose classes")
    parser.add_argument("--trust", action="store_true", help="run code that the checkpoint names: a trunk of your own")


def files_of(images: Sequence[str]) -> list[str]:
    """Return the files, and those in folders in order; a UserError where one is not there, or a folder is empty."""
    from jtln.data.collections.folder import files_below

    files: list[str] = []
    for each in images:
        path = Path(each).expanduser()
        if not each.strip():
            raise UserError("expected images or folders of them, but got an empty name")
        if not path.exists():
            raise UserError(f"expected images or folders of them, but there is no {each}")
        found = [str(path)] if path.is_file() else list(files_below(str(path)))
        if not found:
            raise UserError(f"expected images in the folder {each}, but there is none")
        files += found
    return files


def _same(file: str, output: Path) -> bool:
    """Return True if ``file`` is the table that an earlier call wrote."""
    return output.exists() and Path(file).resolve() == output.resolve()


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"expected a device that this machine has for --device, but got {name}: {reason}") from error
    return device


def _predict(given: argparse.Namespace) -> int:
    from tqdm import tqdm

    from jtln.data.files import BadImage
    from jtln.inference import load
    from jtln.inference.classifier import Explained

    for key, value in (("--top", given.top), ("--batch-size", given.batch_size)):
        if value < 1:
            raise UserError(f"expected {key} of 1 or more, but got {value}")
    device = _device(given.device)
    files = [each for each in files_of(given.images) if given.output is None or not _same(each, given.output)]
    classifier = load(given.run, given.head, given.views, given.trust).to(device)
    top = min(given.top, len(classifier.classes))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    bad = 0
    with (
        nullcontext(sys.stdout)
        if given.output is None
        else given.output.open("w", newline="", encoding="utf-8", errors="backslashreplace") as out
    ):
        writer = csv.writer(out, lineterminator="\n")
        further = [name for k in range(2, top + 1) for name in (f"class_{k}", f"probability_{k}")]
        writer.writerow(["image", "class", "probability", *further, *(["related"] if given.explain else [])])
        found: Iterator[tuple[str | Path, torch.Tensor | Explained | BadImage]]
        found = (classifier.explain if given.explain else classifier.predict)(files, given.batch_size)
        for file, each in tqdm(found, total=len(files), unit=" images", disable=given.output is None or None):
            if isinstance(each, BadImage):
                bad += 1
                print(f"left out {each.path}: {each.reason}", file=sys.stderr)
                continue
            probabilities = each.probabilities if isinstance(each, Explained) else each
            best = probabilities.topk(top)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            cells = [cell for i, p in pairs for cell in (classifier.classes[i], f"{p:.4f}")]
            if isinstance(each, Explained):
                cells.append(", ".join(f"{name} {share:.2f}" for name, share in each.related))
            writer.writerow([file, *cells])
    if given.output is not None:
        print(f"{len(files) - bad} images: {given.output}")
    return 1 if bad else 0
