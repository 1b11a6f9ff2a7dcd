"""``jtln export``: a trained network as one file that runs without this package."""

from __future__ import annotations

import argparse
import io
import json
import warnings

from jtln.cli.options import guarded, path_argument
from jtln.cli.predict import add_run
from jtln.errors import UserError, unknown
from jtln.storage import replacing

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def main(arguments: list[str]) -> int:
    """Write the network to a file; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="jtln export",
        description="Write a trained network to one file that runs without this package: images (N, channels, height, "
        "width) as bytes go in, probabilities (N, classes) come out. The names of the classes are in the file, too.",
        epilog="For instance: jtln export outputs/fashion/2026-11-22_20-00-00 --output clothes.onnx",
    )
    add_run(parser)
    parser.add_argument("--format", default="onnx", help="onnx (default) or torch (torch.export's .pt2)")
    parser.add_argument("--views", help="none, flip or ten_crop; default: as in the run's test")
    parser.add_argument(
        "--output", type=path_argument, metavar="FILE", help="default: model.onnx or model.pt2 in the run's folder"
    )
    return guarded(parser, arguments, _export)


def _export(given: argparse.Namespace) -> int:
    if given.format not in SUFFIXES:
        raise unknown("--format", given.format, SUFFIXES)
    import torch

    from jtln.inference import load
    from jtln.inference.export import to_onnx, to_torch

    classifier = load(given.run, given.head, given.views, given.trust)
    folder = given.run if given.run.is_dir() else given.run.parent
    path = given.output or folder / f"model{SUFFIXES[given.format]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if given.format == "onnx":
        to_onnx(classifier, path)
    else:
        if path.suffix != ".pt2":
            raise UserError(f"expected --output to end in .pt2, as torch.export wants it, but got {path}")
        written = io.BytesIO()  # to a path it would be written by C++, which ends the process where it cannot
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(
                to_torch(classifier), written, extra_files={"classes.json": json.dumps(classifier.classes)}
            )
        with replacing(path) as file:
            file.write(written.getbuffer())
    side, channels = classifier.reader.size, classifier.reader.channels
    print(f"images (N, {channels}, {side}, {side}) as bytes -> probabilities (N, {len(classifier.classes)}): {path}")
    return 0
