"""``jtln features``: compute the features of a trunk that stays as it is, ahead of the runs that use them."""

from __future__ import annotations

from omegaconf import DictConfig

from jtln.cli.hydra_app import run_hydra

HELP = """\
usage: jtln features [GROUP=FILE ...] [KEY=VALUE ...]

Compute the features of every image that a run with these settings reads, and keep them in the cache: runs of other
seeds, numbers of labels, costs and heads then take seconds. A bar shows how long it takes. For instance:

  jtln features experiment=photographs dataset.target.root=MINE
  jtln features dataset=folder dataset.source.root=A dataset.target.root=B trunk=efficientnet_lite0 trunk.freeze=true"""


def main(arguments: list[str]) -> int:
    """Compute features into the cache; return the exit code."""
    if {"--help", "-h"} & set(arguments):
        print(HELP)
        return 0
    return run_hydra(["hydra.run.dir=outputs/features/${now:%Y-%m-%d_%H-%M-%S}", *arguments], _compute)


def _compute(config: DictConfig) -> None:
    from jtln.cli.build import build
    from jtln.training.run import compute_features

    experiment = build(config)
    images, seconds = compute_features(experiment)
    print(f"features of {images} images in {seconds:.1f} s: {experiment.cache}")
