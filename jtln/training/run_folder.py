"""The files that a run writes into its folder."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from jtln.costs import is_constant
from jtln.costs.file import save_cost
from jtln.data.duplicates import Repeat
from jtln.data.pairs import Pair
from jtln.errors import UserError
from jtln.heads import HeadFit
from jtln.methods.method import IMAGES
from jtln.module import JTLN
from jtln.reporting import plots
from jtln.reporting.gallery import make_gallery
from jtln.reporting.predictions import Predictions, write_predictions
from jtln.reporting.run_page import strongest_transports, transport_sentences, write_report
from jtln.storage import clear_leftovers, writable, write_text
from jtln.training.class_costs import RunCost, RunPrior
from jtln.training.experiment import Experiment
from jtln.training.log import calibration_message, head_message, show_result, unknown_classes, unknown_message
from jtln.training.pretraining import Pretrained
from jtln.training.provenance import git_commit, hardware, versions
from jtln.training.trainer import Fitted, Metrics
from jtln.transport.plans import plan_summary


@rank_zero_only
def write_settings(experiment: Experiment) -> None:
    """Write config.yaml and overrides.yaml, and clear what a killed run left of files that it was replacing."""
    folder = experiment.folder
    folder.mkdir(parents=True, exist_ok=True)
    for each in (folder, folder / "checkpoints"):
        clear_leftovers(each)
    write_text(folder / "config.yaml", experiment.config)
    lines = "".join(f"- {json.dumps(override)}\n" for override in experiment.overrides)
    write_text(folder / "overrides.yaml", lines or "[]\n")


def check_split(folder: Path, pair: Pair) -> None:
    """Raise a UserError where the pair is not the one that the run in ``folder`` was begun with.

    Images count by name, class and part, and by their fingerprint: what was trained on must not be tested.
    """
    try:
        with open(folder / "split.csv", newline="", encoding="utf-8") as file:
            begun = {tuple(row) for row in list(csv.reader(file))[1:]}
        fingerprints = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        if not isinstance(fingerprints, dict):
            raise ValueError(f"{type(fingerprints).__name__} in data.json")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"expected the split that the run in {folder} was begun with, but got: {error}") from error
    now = {tuple(map(writable, row)) for row in _split(pair)}
    if begun != now:
        new, gone = sorted(now - begun), sorted(begun - now)
        example = f"now in {new[0][0]}: {new[0][2]}" if new else f"no longer in {gone[0][0]}: {gone[0][2]}"
        raise UserError(
            f"expected the target images that the run in {folder} was begun with, but {len(new)} are new in their part "
            f"and {len(gone)} are gone from theirs ({example}): put the data back, or start a new run"
        )
    other = [part for part, digest in _fingerprints(pair).items() if fingerprints.get(part) != digest]
    if other:
        raise UserError(
            f"expected the images that the run in {folder} was begun with, but got others under the same names in: "
            f"{', '.join(other)}. Put the data back, or start a new run"
        )


@rank_zero_only
def write_split(folder: Path, pair: Pair, repeated: Sequence[Repeat] = ()) -> None:
    """Write split.csv, the target's images of each part, and data.json, the fingerprints of all parts.

    Where there are any, also skipped.csv, the broken images, and repeated.csv, those that are in the pair twice.
    """
    _write_table(folder / "split.csv", ("part", "class", "image"), _split(pair))
    write_text(folder / "data.json", json.dumps(_fingerprints(pair), indent=1) + "\n")
    if pair.skipped:
        _write_table(folder / "skipped.csv", ("image", "reason"), pair.skipped)
    if repeated:
        _write_table(folder / "repeated.csv", Repeat._fields, repeated)


def _split(pair: Pair) -> list[tuple[str, str, str]]:
    target = pair.target
    return [
        (part, target.classes.names[label], image)
        for part, images in (("train", target.train), ("val", target.val), ("test", target.test))
        for image, label in zip(images.names, images.labels.tolist(), strict=True)
    ]


def _fingerprints(pair: Pair) -> dict[str, str]:
    tasks = {"source": pair.source, "target": pair.target}
    return {
        f"{side}.{part}": getattr(task, part).fingerprint()
        for side, task in tasks.items()
        for part in ("train", "val", "test")
    }


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, writable(lines.getvalue()))


@torch.no_grad()
def mean_plan(module: JTLN, pair: Pair, transform: Callable[[Tensor], Tensor], batch: int = 256) -> dict[str, Any]:
    """Return the mean transport plan between the predictions of both trained heads, and its mean entropy.

    The images are the validation images of the task (or tasks) that feed the transport loss, or the training images
    where there are none.
    """
    assert module.transport is not None
    module.eval()
    plan, entropy, count = torch.zeros_like(module.transport.cost), 0.0, 0
    for side in ("source", "target"):
        images = getattr(pair, side).val
        images = images if len(images) else getattr(pair, side).train
        if side not in IMAGES[module.method.ot_images]:
            continue
        for start in range(0, len(images), batch):
            pixels, _ = images.__getitems__(list(range(start, min(start + batch, len(images)))))
            module.transport(*module(transform(pixels.to(module.device))))
            assert module.transport.last is not None
            summary = plan_summary(module.transport.last, module.transport.cost, module.transport.epsilon)
            plan += summary.mean_plan * len(pixels)
            entropy += float(summary.entropy.sum())
            count += len(pixels)
    return {"plan": (plan / count).cpu(), "plan_entropy": entropy / count}


def describe(
    experiment: Experiment,
    trunk_name: str,
    trainer: pl.Trainer,
    metrics: Metrics,
    fitted: Fitted,
    cost: RunCost | None,
    pretrained: Pretrained | None,
    head_fit: HeadFit | None,
    prior: RunPrior | None = None,
) -> dict[str, Any]:
    """Return what ``result.json`` holds, but for what the plots are made of."""
    method = experiment.method
    return {
        "method": method.name,
        "head": experiment.head.name,
        "dataset": experiment.dataset,
        "cost": experiment.cost_name if experiment.uses_cost else None,
        "shots": experiment.spec.shots,
        "rate": experiment.spec.rate,
        "seed": experiment.seed,
        "overrides": list(experiment.overrides),
        "command": experiment.command,
        "settings": experiment.settings,
        "git_commit": git_commit(),
        "versions": versions(),
        "hardware": hardware(trainer),
        "target": metrics["target"],
        "source": metrics["source"],
        "transport": {
            "epsilon": experiment.transport.epsilon,
            "lambda_ot": method.lambda_ot,
            "lambda_ot_unit": method.lambda_ot_unit,
            "lambda_label": method.lambda_label,
            "ot_images": method.ot_images,
        }
        if experiment.uses_cost
        else None,
        "calibration": None if cost is None or cost.calibration is None else _finite(cost.calibration._asdict()),
        "prior": None if prior is None else prior.described(),
        "head_fit": None if head_fit is None else {name: round(value, 6) for name, value in head_fit.chosen.items()},
        "target_only": None,
        "trunk": {
            "name": trunk_name,
            "pretrained": None
            if pretrained is None
            else {
                "key": pretrained.key,
                "cached": pretrained.cached,
                "source_val_accuracy": pretrained.accuracy,
            },
        },
        "steps": fitted.steps,
        "best_epoch": fitted.best_epoch,
        "synthetic_images": experiment.synthetic_images is not None,
        "seeds_differ_in_test": experiment.spec.seeds_differ_in_test or experiment.seed_draws_classes,
        "seconds": fitted.seconds,
        "images_per_second": fitted.images_per_second,
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """Replace infinite numbers by None, because JSON has no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def write_results(
    experiment: Experiment,
    pair: Pair,
    module: JTLN,
    result: dict[str, Any],
    cost: Tensor | None,
    related: Tensor | None,
    plan: dict[str, Any] | None,
    predictions: Predictions,
    seconds: float,
) -> None:
    """Write tables, predictions, plots, the page and ``result.json``, and print the result.

    Args:
        experiment: the run's settings.
        pair: the run's images.
        module: the trained network.
        result: the content of ``result.json``, which this completes in place.
        cost: (S, T) for ``cost.csv``; None where the run has none.
        related: (S, T) >= 0, whose columns say which source classes go to a target class: the plan between the classes,
            or of the prior the source classes that it reads in the labelled images; None where nothing relates them.
        plan: of :func:`mean_plan`; None where no transport loss was trained.
        predictions: for the target's test images.
        seconds: of the whole run.
    """
    folder, source, target = experiment.folder, pair.source.classes, pair.target.classes
    messages: list[str] = []
    if cost is not None:
        cost = cost.cpu()
        save_cost(folder / "cost.csv", cost, source, target)
        result["unknown_classes"] = unknown_classes(experiment.cost, pair)
        messages = [*unknown_message(result["unknown_classes"]), *calibration_message(result["calibration"])]
    if result["transport"] is not None:
        strongest: dict[str, list[tuple[str, float]]] = {}
        # Under a constant cost the plan is what the two heads predict, each for itself: nothing is matched.
        if related is not None and not is_constant(related):
            strongest = strongest_transports(related if plan is None else plan["plan"], source.names, target.names)
        origin = {"strongest": strongest, "strongest_from": "classes" if plan is None else "images"}
        entropy = {} if plan is None else {"plan_entropy": plan["plan_entropy"]}
        result["transport"] |= entropy | (origin if strongest else {"strongest": {}})
        messages = [*messages, *transport_sentences(strongest, limit=6)]
    messages = [*messages, *head_message(experiment.head.name, result["head_fit"])]
    result["seconds_in_all"] = seconds
    write_predictions(predictions, folder)
    if experiment.report:
        write_page(experiment, pair, module, result, cost, plan, predictions)
    # Last: a run with a result is finished.
    write_text(folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    show_result(result, messages, folder)


def write_page(
    experiment: Experiment,
    pair: Pair,
    module: JTLN,
    result: dict[str, Any],
    cost: Tensor | None,
    plan: dict[str, Any] | None,
    predictions: Predictions,
) -> None:
    """Draw the plots, choose the images of the gallery and write ``report.html``; see :func:`write_results`."""
    folder, source, target = experiment.folder, pair.source.classes, pair.target.classes
    pictures = folder / "plots"
    pictures.mkdir(exist_ok=True)
    if cost is not None:
        title = f"cost {experiment.cost_name}"
        plots.cost_heatmap(cost, source.names, target.names, title).savefig(pictures / "cost.png")
    if plan is not None:
        plots.plan_heatmap(plan["plan"], source.names, target.names).savefig(pictures / "plan.png")
    if module.terms:  # else nothing was trained
        plots.training_curves(folder / "metrics.csv").savefig(pictures / "training.png")
    plots.confusion(module.test_confusion.cpu(), target.names).savefig(pictures / "confusion.png")
    related = (result["transport"] or {}).get("strongest", {})
    gallery = make_gallery(target, pair.target.train, pair.target.test, predictions, related)
    write_report(folder, result, gallery)


def log_summary(logger: Logger, result: dict[str, Any], config: str, folder: Path) -> None:
    """Log the end results, and to W&B the plots.

    Args:
        logger: of the run, W&B's or another.
        result: of the run.
        config: the composed configuration, YAML; W&B has it from the start.
        folder: of the run.
    """
    found = {
        f"best/{split}/{head}/{key}": value
        for head in ("target", "source")
        for split in ("val", "test")
        for key, value in (result[head][split] or {}).items()
    }
    if not isinstance(logger, WandbLogger):
        logger.log_hyperparams(yaml.safe_load(config))
        logger.log_metrics({key: float(value) for key, value in found.items()}, step=result["steps"])
        logger.save()
        return
    import wandb

    run = logger.experiment
    run.summary.update(found)
    run.log({path.stem: wandb.Image(str(path)) for path in sorted((folder / "plots").glob("*.png"))})
