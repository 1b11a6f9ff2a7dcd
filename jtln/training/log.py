"""The messages of a run on the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from jtln.costs import Cost
from jtln.costs.calibration import Calibration
from jtln.data.duplicates import Repeat, unseen
from jtln.data.pairs import Pair
from jtln.module import JTLN
from jtln.reporting.numbers import hundredths
from jtln.reporting.tables import Column, show
from jtln.schedules import Constant
from jtln.training.class_costs import RunCost, RunPrior
from jtln.training.experiment import Experiment
from jtln.training.pretraining import Pretrained

_REPEATED = {  # by what a Repeat says
    "test": "test images that are labelled or validation images as well: {} (test accuracy is too high)",
    "validation": "validation images that are labelled images as well: {}",
    "source": "test images that are training images of the source as well: {}",
    "classes": "images that stand under another class as well: {}",
}


@rank_zero_only
def log(label: str, text: str) -> None:
    """Print a line, of the first process alone."""
    print(f"{label:<10} {text}", flush=True)


def _names(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def log_data(experiment: Experiment, pair: Pair, repeated: Sequence[Repeat] = ()) -> None:
    """Print the pair's classes and numbers of images, and its skipped and duplicate images."""
    spec, source, target = experiment.spec, pair.source, pair.target
    per_class = "all" if spec.shots is None else f"{spec.shots} a class"
    if spec.rate is not None:
        per_class = f"{spec.rate:.3g} of each class"
    synthetic = " (synthetic images: nothing can be concluded)" if experiment.synthetic_images is not None else ""
    log("pair", f"{experiment.dataset}, {pair.image_size} x {pair.image_size} pixels{synthetic}")
    parts = "{} classes; {} training, {} validation, {} test images: {}"
    log("source", parts.format(len(source.classes), *_sizes(source), _names(source.classes.names)))
    log("target", parts.format(len(target.classes), *_sizes(target), _names(target.classes.names)))
    if spec.dropped:
        log("overlap", f"left out of the source, as they are target classes, too: {_names(spec.dropped)}")
    log("shots" if spec.rate is None else "rate", f"{per_class}, {len(target.train)} labelled target images")
    if pair.skipped:
        log("skipped", f"unreadable images: {len(pair.skipped)}, listed in {experiment.folder / 'skipped.csv'}")
    if repeated:
        told = [_REPEATED[what].format(count) for what, count in Counter(each.what for each in repeated).items()]
        log("repeated", f"{'; '.join(told)}. Listed in {experiment.folder / 'repeated.csv'}: take one of each two out")
    if count := unseen(pair):
        log("note", f"{count} images are not kept decoded, and were not searched for repeats")


def _sizes(task: Any) -> tuple[int, int, int]:
    return len(task.train), len(task.val), len(task.test)


def log_training(
    experiment: Experiment,
    pair: Pair,
    module: JTLN,
    cost: RunCost | None,
    pretrained: Pretrained | None,
    passes: dict[str, float],
    prior: RunPrior | None = None,
) -> None:
    """Print trunk, cost, prior, objective, head and budget."""
    method, budget = experiment.method, experiment.budget
    origin = "weights of others" if module.trunk.pretrained else "not pre-trained here"
    if pretrained is not None:
        origin = (
            f"pre-trained on the source set, validation accuracy {pretrained.accuracy:.1%}"
            f"{' (from the cache)' if pretrained.cached else ''}"
        )
    frozen = ", frozen" if module.trunk.frozen else ""
    log("trunk", f"{module.trunk.name}, {module.trunk.dim} features; {origin}{frozen}")
    factor = experiment.optimization.trunk_lr_factor
    if module.trunk.pretrained and factor > 0.3 and not module.trunk.frozen:
        rate = f"{factor:g} times the heads' rate"
        log("note", f"weights that others trained learn at {rate}: trunk_lr_factor=0.1 keeps more of what they know")
    if cost is None:
        log("cost", f"none: method={method.name} with head={experiment.head.name} reads none")
    else:
        sizes = f"{len(pair.source.classes)} x {len(pair.target.classes)}"
        sharpness = f", {_sharpness(cost.calibration, experiment.transport.epsilon)}"
        log("cost", f"{experiment.cost_name}, {sizes}{sharpness if experiment.uses_plan else ''}")
        for message in unknown_message(unknown_classes(experiment.cost, pair)):
            log("unknown", message)
    if prior is not None:
        log("prior", prior_message(prior.described()))
    terms = ["CE(target)"] if method.lambda_target else []
    if method.lambda_source:
        terms.append(f"{method.lambda_source:g} CE(source)")
    if method.lambda_ot:
        unit = "/epsilon" if method.lambda_ot_unit == "1/epsilon" else ""
        change = "" if isinstance(method.ot_schedule, Constant) else ", annealed"
        terms.append(f"{method.lambda_ot:g}{unit} OT({method.ot_images} images{change})")
    if method.lambda_label:
        terms.append(f"{method.lambda_label:g} OT(target images to their labels)")
    if method.keep:
        terms.append(f"{method.keep:g} KL(source head before training on target images)")
    if method.penalty is not None:
        terms.append(f"{type(method.penalty).__name__}({method.penalty.extra_repr()})")
    log("method", f"{method.name}: " + (" + ".join(terms) or "nothing is trained but the head"))
    log(
        "head", f"{experiment.head.name}, {'formed after training' if experiment.head.replaces else 'trained in place'}"
    )
    if not module.terms:
        return
    rates = " and ".join(
        f"{size} {side} images (seen {passes[side]:.1f} times)"
        for side, size in (("source", budget.source_batch_size), ("target", budget.target_batch_size))
        if side in passes
    )
    log("training", f"{budget.steps} steps of {rates}, validated {budget.epochs} times, seed {experiment.seed}")


def _sharpness(calibration: Calibration | None, epsilon: float) -> str:
    if calibration is None:
        return f"epsilon {epsilon:g}"
    return "calibrated: " + " ".join(calibration_message(calibration._asdict()))


def unknown_classes(cost: Cost, pair: Pair) -> dict[str, list[str]]:
    """Return the names of the classes that the cost has no knowledge of, by side."""
    unknown = cost.unknown(pair.source.classes, pair.target.classes)
    return {side: [getattr(pair, side).classes.names[i] for i in found] for side, found in unknown._asdict().items()}


def unknown_message(found: dict[str, list[str]] | None) -> list[str]:
    """Return how many and which classes have mean costs, as the cost has no knowledge of them; nothing for none."""
    sides = [
        f"{len(names)} {side} class{'es' if len(names) > 1 else ''} ({_names(names)})"
        for side, names in (found or {}).items()
        if names
    ]
    return [f"the cost has no knowledge of {' and '.join(sides)}: mean costs"] if sides else []


def calibration_message(found: dict[str, Any] | None) -> list[str]:
    """Return how far the labelled images and the cost agree; nothing where there was no calibration."""
    if found is None:
        return []
    if found["epsilon"] is None or not math.isfinite(found["epsilon"]):
        return ["the labelled images are no likelier under the cost than by chance: no relation of the classes is used"]
    nll, chance = found["nll"], found["chance"]
    return [f"epsilon {found['epsilon']:.2g} of its range, nll {nll:.3f} of the labelled images (chance {chance:.3f})"]


def prior_message(found: dict[str, Any]) -> str:
    """Return the weight and the sharpness of the prior, and how likely the labels are under q."""
    chosen = (
        f", chosen on {len(found['folds'])} candidates by labelled images that are left out" if found["folds"] else ""
    )
    return (
        f"alpha {found['alpha']:.3g}{chosen}; epsilon {found['epsilon']:.2g}; labels under q: nll {found['nll']:.3f} "
        f"(chance {found['chance']:.3f})"
    )


def head_message(name: str, fit: dict[str, float] | None) -> list[str]:
    """Return what was chosen of a head that was formed after training."""
    if not fit:
        return []
    return [f"head {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in fit.items())]


def show_result(result: dict[str, Any], messages: Sequence[str], folder: Path) -> None:
    """Print the table of accuracies, the messages and the folder."""
    columns = [
        Column("accuracy in %"),
        *(Column(name, right=True) for name in ("validation", "test", "mean class, test", "test images")),
    ]
    rows = []
    for head in ("target", "source"):
        val, test = result[head]["val"], result[head]["test"]
        if test is not None:
            figures = [test["accuracy"], test["mean_class_accuracy"]]
            validation = "-" if val is None else hundredths(val["accuracy"])
            rows.append([head, validation, *map(hundredths, figures), str(test["n"])])
    print()
    show(f"{result['method']}, head {result['head']}, on {result['dataset']}", columns, rows)
    for message in messages:
        print(f"  {message}")
    names = [name for name in ("report.html", "result.json", "plots", "checkpoints") if (folder / name).exists()]
    print(f"\nrun folder: {folder}  ({', '.join(names)})")
