"""One run, or with -m one for each combination of values."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from jtln.cli.hydra_app import run_hydra
from jtln.cli.objective import check_objective, objective
from jtln.cli.resume import check_unchanged
from jtln.cli.run_folder import AUTO, own_folder
from jtln.study.ledger import read_result


def main(arguments: Sequence[str]) -> int:
    """Train as ``arguments`` say; returns the exit code."""
    if lone := [argument for argument in arguments if re.match(r"[+~]*study\.", argument)]:
        print(
            f"error: {lone[0]} is for a study, but none is named: add -m study=few_shot, for instance", file=sys.stderr
        )
        return 2
    return run_hydra(list(arguments), _train)


def _train(config: DictConfig) -> float | None:
    with own_folder(config.resume):
        return train(config)


def train(config: DictConfig) -> float | None:
    """Make the run that ``config`` describes, or with ``pretrain.only`` no more than its pre-trained trunk.

    Returns:
        ``optimized_metric`` of the target's validation images; None without any.
    """
    # Here, so that --help and a mistake in the call need not wait for PyTorch.
    from jtln.cli.build import build
    from jtln.training.run import make_trunk, run

    experiment, failed, value = build(config), True, None
    check_objective(config.optimized_metric, experiment.spec.validates)
    if experiment.resume:
        check_unchanged(experiment.config, experiment.folder)
    finished = read_result(experiment.folder / "result.json") if config.resume == AUTO else None
    if finished is not None and finished["settings"].get("run") == experiment.settings["run"]:
        print(f"finished: {experiment.folder} has a result of these settings")
        return objective(config.optimized_metric, finished)
    try:
        if config.pretrain.get("only"):
            make_trunk(experiment)
        else:
            value = objective(config.optimized_metric, run(experiment))
        failed = False
    finally:
        if (wandb := sys.modules.get("wandb")) is not None and experiment.loggers:
            wandb.finish(exit_code=int(failed))  # otherwise the next job of a multirun would be logged into this one
    return value
