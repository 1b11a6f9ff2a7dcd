"""What a run tells the user on the screen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from jtln.costs import is_constant
from jtln.data.duplicates import Repeat, unseen
from jtln.data.pairs import Pair
from jtln.module import JTLN
from jtln.reporting.tables import Column, show
from jtln.schedules import Constant
from jtln.training.experiment import Experiment
from jtln.training.pretraining import Pretrained

_REPEATED = {  # by what a Repeat says
    "test": "test images that are labelled or validation images as well: {} (test accuracy is too high)",
    "validation": "validation images that are labelled images as well: {}",
    "source": "test images that are training images of the source as well: {}",
    "classes": "images that stand under another class as well: {}",
}


@rank_zero_only
def say(label: str, text: str) -> None:
    print(f"{label:<10} {text}", flush=True)


def _names(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def announce_data(experiment: Experiment, pair: Pair, repeated: Sequence[Repeat] = ()) -> None:
    spec, source, target = experiment.spec, pair.source, pair.target
    per_class = "all" if spec.shots is None else f"{spec.shots} a class"
    if spec.rate is not None:
        per_class = f"{spec.rate:.3g} of each class"
    made = " (made images: nothing can be concluded)" if experiment.made_images is not None else ""
    say("pair", f"{experiment.dataset}, {pair.image_size} x {pair.image_size} pixels{made}")
    parts = "{} classes; {} training, {} validation, {} test images: {}"
    say("source", parts.format(len(source.classes), *_sizes(source), _names(source.classes.names)))
    say("target", parts.format(len(target.classes), *_sizes(target), _names(target.classes.names)))
    if spec.dropped:
        say("overlap", f"left out of the source, as they are target classes, too: {_names(spec.dropped)}")
    say("shots" if spec.rate is None else "rate", f"{per_class}, {len(target.train)} labelled target images")
    if pair.skipped:
        say("skipped", f"unreadable images: {len(pair.skipped)}, listed in {experiment.folder / 'skipped.csv'}")
    if repeated:
        told = [_REPEATED[what].format(count) for what, count in Counter(each.what for each in repeated).items()]
        say("repeated", f"{'; '.join(told)}. Listed in {experiment.folder / 'repeated.csv'}: take one of each two out")
    if count := unseen(pair):
        say("note", f"{count} images are not kept decoded, and were not searched for repeats")


def _sizes(task: Any) -> tuple[int, int, int]:
    return len(task.train), len(task.val), len(task.test)


def announce_training(
    experiment: Experiment, pair: Pair, module: JTLN, pretrained: Pretrained | None, passes: dict[str, float]
) -> None:
    method, budget = experiment.method, experiment.budget
    origin = "not pre-trained here"
    if pretrained is not None:
        origin = (
            f"pre-trained on the source set, validation accuracy {pretrained.accuracy:.1%}"
            f"{' (from the cache)' if pretrained.cached else ''}"
        )
    say("trunk", f"{module.trunk.name}, {module.trunk.dim} features; {origin}")
    if module.trunk.pretrained and experiment.trunk_lr_factor > 0.3 and not method.freeze_trunk:
        rate = f"{experiment.trunk_lr_factor:g} times the heads' rate"
        say("note", f"weights that others trained learn at {rate}: trunk_lr_factor=0.1 keeps more of what they know")
    if module.transport is None:
        say("cost", f"none: method={method.name} has no transport loss")
    else:
        sizes = f"{len(pair.source.classes)} x {len(pair.target.classes)}"
        tested = experiment.calibrate and not is_constant(module.transport.cost)
        sharpness = "as far as the labelled images bear it out" if tested else f"epsilon {method.epsilon:g}"
        say("cost", f"{experiment.cost_name}, {sizes}, {sharpness}")
    terms = ["CE(target)"]
    if method.lambda_source:
        terms.append(f"{method.lambda_source:g} CE(source)")
    if method.lambda_ot:
        unit = "/epsilon" if method.lambda_ot_unit == "1/epsilon" else ""
        change = "" if isinstance(method.ot_schedule, Constant) else ", annealed"
        terms.append(f"{method.lambda_ot:g}{unit} OT(on {method.on} images{change})")
    if method.lambda_label:
        terms.append(f"{method.lambda_label:g} OT(to the labels of target images)")
    if method.penalty is not None:
        terms.append(f"{type(method.penalty).__name__}({method.penalty.extra_repr()})")
    frozen = ", trunk frozen" if method.freeze_trunk else ""
    end = "" if method.head_end is None else "; then the target head becomes a discriminant"
    say("method", f"{method.name}: " + " + ".join(terms) + frozen + end)
    rates = " and ".join(
        f"{size} {side} images (seen {passes[side]:.1f} times)"
        for side, size in (("source", budget.source_batch_size), ("target", budget.target_batch_size))
        if side in passes
    )
    say(
        "training",
        f"{budget.steps} steps of {rates}, validated {budget.epochs} times, seed {experiment.seed}",
    )


def cost_sentences(found: dict[str, Any] | None) -> list[str]:
    """What the labelled images said of the cost, in words; nothing where they were not asked."""
    if found is None:
        return []
    if found["epsilon"] is None:
        return ["the labelled images do not bear the cost out: no relation of the classes was used"]
    own, chance = math.exp(-found["surprise"]), math.exp(-found["chance"])
    return [
        f"the labelled images bear the cost out: by it alone, at epsilon {found['epsilon']:.2g} of its range, their "
        f"classes had a probability of {own:.1%} (chance {chance:.1%})"
    ]


def head_sentences(found: dict[str, float] | None) -> list[str]:
    """What the validation images chose of the target head's end, in words; nothing where it stayed as trained."""
    if found is None:
        return []
    transported, common, trained, own = (found[key] for key in ("transported", "common", "trained", "own"))
    images = "labelled image" if transported == 1 else "labelled images"
    middles = {0.0: "the source classes' middle", 1.0: "the labelled images' own middle"}
    middle = middles.get(own, "a point between the source's middle and the labelled images'")
    counts = f"{transported:g} {images}, {middle} for {common:g}"
    share = f", and the trained head has {trained:.0%} of the say" if trained else ""
    return [f"the target head ended as a discriminant: a class's transported mean counts for {counts}{share}"]


def show_result(result: dict[str, Any], sentences: Sequence[str], folder: Path) -> None:
    columns = [
        Column("accuracy in %"),
        *(Column(name, right=True) for name in ("validation", "test", "mean class, test", "test images")),
    ]
    rows = []
    for head in ("target", "source"):
        val, test = result[head]["val"], result[head]["test"]
        figures = (val["accuracy"], test["accuracy"], test["mean_class_accuracy"])
        rows.append([head, *(f"{100 * figure:.1f}" for figure in figures), str(test["n"])])
    print()
    show(f"{result['method']} on {result['dataset']}", columns, rows)
    for sentence in sentences:
        print(f"  {sentence}")
    print(f"\nrun folder: {folder}  (report.html, result.json, plots/, checkpoints/)")
