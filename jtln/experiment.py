"""One run, from a description of it to a folder with everything that came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from jtln import plots
from jtln.costs import Cost
from jtln.costs.table import save_cost
from jtln.data.made import made_pair
from jtln.data.pair import Pair, PairSpec
from jtln.data.transforms import Augment
from jtln.errors import UserError, unknown
from jtln.losses import GRADIENTS, TransportLoss
from jtln.module import IMAGES, JTLN, UNITS
from jtln.pretrain import Pretrained, Pretraining, pretrain
from jtln.provenance import git_commit, hardware, versions
from jtln.report import strongest_transports, transport_sentences, write_report
from jtln.schedules import Constant, Schedule
from jtln.tables import Column, show
from jtln.training import (
    Budget,
    Outcome,
    TrainerSettings,
    csv_logger,
    fit_and_test,
    make_trainer,
    pair_data,
    steps_done,
)
from jtln.transport import check_epsilon, plan_summary
from jtln.trunk import Trunk


@dataclass(frozen=True)
class Method:
    """The objective: which terms, and how they are weighed. The keys of ``conf/method``."""

    name: str
    lambda_source: float = 1.0
    lambda_ot: float = 0.0
    lambda_ot_unit: str = "1/epsilon"
    epsilon: float = 0.1
    on: str = "source"
    gradient: str = "both"
    max_iterations: int = 200
    tolerance: float = 1e-4
    ot_schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        """Refuse what cannot be before any image is read."""
        check_epsilon(self.epsilon)
        for key, choices in {"lambda_ot_unit": UNITS, "on": IMAGES, "gradient": GRADIENTS}.items():
            if getattr(self, key) not in choices:
                raise unknown(f"method.{key}", getattr(self, key), choices)
        for key in ("lambda_source", "lambda_ot"):
            if not getattr(self, key) >= 0:
                raise UserError(f"expected method.{key} >= 0, but got {getattr(self, key)}")


@dataclass(frozen=True)
class Experiment:
    """Everything that a run is made of."""

    method: Method
    dataset: str  # the names that results are filed under
    cost_name: str
    spec: PairSpec
    cost: Cost
    make_trunk: Callable[[], Trunk]
    budget: Budget
    optimizer: Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer]
    lr_schedule: Schedule
    trunk_lr_factor: float
    trainer: TrainerSettings
    folder: Path
    seed: int = 0
    augment: bool = True
    pretraining: Pretraining | None = None
    pretraining_depends: dict[str, Any] = field(default_factory=dict)
    cache: Path | None = None
    num_workers: int = 0
    loggers: Sequence[Logger] = ()
    made_images: int | None = None  # a few made images a class in place of real ones
    resume: bool = False
    config: str = ""  # the composed configuration, YAML
    overrides: Sequence[str] = ()
    command: str = "python train.py"


def run(experiment: Experiment) -> dict[str, Any]:
    """Train, choose by validation, test once, and write the run folder; returns what ``result.json`` holds.

    In several processes every process calls this, and the first alone writes and prints.
    """
    started = time.perf_counter()
    spec, folder = experiment.spec, experiment.folder
    _write_settings(experiment)
    pair = spec.load() if experiment.made_images is None else made_pair(spec, per_class=experiment.made_images)
    experiment = replace(experiment, budget=_fitting(experiment.budget, pair))
    augment = Augment(flip=spec.flip, shift=spec.shift) if experiment.augment else None
    _announce_data(experiment, pair)

    pretrained = None
    if experiment.pretraining is not None:
        pretrained = pretrain(
            pair,
            experiment.make_trunk,
            replace(experiment.pretraining, budget=_fitting(experiment.pretraining.budget, pair)),
            experiment.trainer,
            augment=augment,
            cache=experiment.cache,
            depends=experiment.pretraining_depends,
            num_workers=experiment.num_workers,
        )
    pl.seed_everything(experiment.seed, verbose=False)
    module = build_module(experiment, pair, pretrained)
    data = pair_data(
        pair,
        module.trunk,
        experiment.budget,
        seed=experiment.seed,
        augment=augment,
        use_source=module.uses_source,
        use_target=module.uses_target,
        num_workers=experiment.num_workers,
    )
    passes = data.passes(experiment.budget.steps)
    _announce_training(experiment, pair, module, pretrained, passes)

    last = folder / "checkpoints" / "last.ckpt"
    checkpoint = last if experiment.resume and last.is_file() else None
    done = steps_done(checkpoint)
    if experiment.resume:
        _say("resumed", f"after {done} steps" if checkpoint else "from the start: there is no checkpoint yet")
    loggers = [csv_logger(folder, keep_steps=done), *experiment.loggers]
    trainer = make_trainer(experiment.trainer, experiment.budget, folder, loggers)
    outcome = fit_and_test(trainer, module, data, checkpoint)

    result = _result(experiment, module, trainer, outcome, pretrained)
    if trainer.is_global_zero:
        plan = _mean_plan(module, pair, data.transform_eval) if module.transport is not None else None
        _write_results(experiment, module, result, plan, time.perf_counter() - started)
        for logger in experiment.loggers:
            _log_summary(logger, result, folder)
    return result


def build_module(experiment: Experiment, pair: Pair, pretrained: Pretrained | None = None) -> JTLN:
    """The network with its objective, started from the pre-trained weights where there are any."""
    method, source, target = experiment.method, pair.source.classes, pair.target.classes
    transport = cost = None
    if method.lambda_ot > 0:
        cost = experiment.cost
        reads_features = cost.updates != "never"
        matrix = torch.ones(len(source), len(target)) if reads_features else cost.matrix(source, target)
        transport = TransportLoss(
            matrix,
            method.epsilon,
            gradient=method.gradient,
            max_iterations=method.max_iterations,
            tolerance=method.tolerance,
        )
    module = JTLN(
        experiment.make_trunk(),
        source,
        target,
        transport,
        cost,
        lambda_source=method.lambda_source,
        lambda_ot=method.lambda_ot,
        lambda_ot_unit=method.lambda_ot_unit,
        ot_schedule=method.ot_schedule,
        on=method.on,
        optimizer=experiment.optimizer,
        trunk_lr_factor=experiment.trunk_lr_factor,
        lr_schedule=experiment.lr_schedule,
    )
    if pretrained is not None:
        pretrained.load_into(module)
    return module


def _fitting(budget: Budget, pair: Pair) -> Budget:
    """A batch never holds an image twice: a task with fewer images than a batch gives all of them each step."""
    return replace(
        budget,
        source_batch_size=min(budget.source_batch_size, len(pair.source.train)),
        target_batch_size=min(budget.target_batch_size, len(pair.target.train)),
    )


# What the user is told.


@rank_zero_only
def _say(label: str, text: str) -> None:
    print(f"{label:<10} {text}", flush=True)


def _names(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def _announce_data(experiment: Experiment, pair: Pair) -> None:
    source, target, shots = pair.source, pair.target, experiment.spec.shots
    per_class = "all" if shots is None else f"{shots} a class"
    made = " (made images: nothing can be concluded)" if experiment.made_images is not None else ""
    _say("pair", f"{experiment.dataset}, {pair.image_size} x {pair.image_size} pixels{made}")
    parts = "{} classes; {} training, {} validation, {} test images: {}"
    _say("source", parts.format(len(source.classes), *_sizes(source), _names(source.classes.names)))
    _say("target", parts.format(len(target.classes), *_sizes(target), _names(target.classes.names)))
    _say("shots", f"{per_class}, {len(target.train)} labelled target images")


def _sizes(task: Any) -> tuple[int, int, int]:
    return len(task.train), len(task.val), len(task.test)


def _announce_training(
    experiment: Experiment, pair: Pair, module: JTLN, pretrained: Pretrained | None, passes: dict[str, float]
) -> None:
    method, budget = experiment.method, experiment.budget
    origin = "not pre-trained here"
    if pretrained is not None:
        origin = (
            f"pre-trained on the source set, validation accuracy {pretrained.accuracy:.1%}"
            f"{' (from the cache)' if pretrained.cached else ''}"
        )
    _say("trunk", f"{module.trunk.name}, {module.trunk.dim} features; {origin}")
    if module.transport is None:
        _say("cost", f"none: method={method.name} has no transport loss")
    else:
        sizes = f"{len(pair.source.classes)} x {len(pair.target.classes)}"
        _say("cost", f"{experiment.cost_name}, {sizes}, epsilon {method.epsilon:g}")
    terms = ["CE(target)"]
    if method.lambda_source:
        terms.append(f"{method.lambda_source:g} CE(source)")
    if method.lambda_ot:
        unit = "/epsilon" if method.lambda_ot_unit == "1/epsilon" else ""
        change = "" if isinstance(method.ot_schedule, Constant) else ", annealed"
        terms.append(f"{method.lambda_ot:g}{unit} OT(on {method.on} images{change})")
    _say("method", f"{method.name}: " + " + ".join(terms))
    rates = " and ".join(
        f"{size} {side} images (seen {passes[side]:.1f} times)"
        for side, size in (("source", budget.source_batch_size), ("target", budget.target_batch_size))
        if side in passes
    )
    _say(
        "training",
        f"{budget.steps} steps of {rates}, validated {budget.epochs} times, seed {experiment.seed}",
    )


# What is written.


@rank_zero_only
def _write_settings(experiment: Experiment) -> None:
    experiment.folder.mkdir(parents=True, exist_ok=True)
    (experiment.folder / "config.yaml").write_text(experiment.config, encoding="utf-8")
    lines = "".join(f"- {json.dumps(override)}\n" for override in experiment.overrides)
    (experiment.folder / "overrides.yaml").write_text(lines or "[]\n", encoding="utf-8")


@torch.no_grad()
def _mean_plan(module: JTLN, pair: Pair, transform: Callable[[Tensor], Tensor], batch: int = 256) -> dict[str, Any]:
    """The mean transport plan over the validation images of the task (or tasks) that feed the transport loss."""
    assert module.transport is not None
    module.eval()
    plan, entropy, count = torch.zeros_like(module.transport.cost), 0.0, 0
    for side in ("source", "target"):
        images = getattr(pair, side).val
        if module.on not in (side, "both"):
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


def _result(
    experiment: Experiment, module: JTLN, trainer: pl.Trainer, outcome: Outcome, pretrained: Pretrained | None
) -> dict[str, Any]:
    method = experiment.method
    return {
        "method": method.name,
        "dataset": experiment.dataset,
        "cost": experiment.cost_name if module.transport is not None else None,
        "shots": experiment.spec.shots,
        "seed": experiment.seed,
        "overrides": list(experiment.overrides),
        "command": experiment.command,
        "git_commit": git_commit(),
        "versions": versions(),
        "hardware": hardware(trainer),
        "target": outcome.metrics["target"],
        "source": outcome.metrics["source"],
        "transport": None,
        "trunk": {
            "name": module.trunk.name,
            "pretrained": None
            if pretrained is None
            else {
                "key": pretrained.key,
                "cached": pretrained.cached,
                "source_val_accuracy": pretrained.accuracy,
            },
        },
        "steps": experiment.budget.steps,
        "best_epoch": outcome.best_epoch,
        "made_images": experiment.made_images is not None,
        "seconds": outcome.seconds,
        "images_per_second": outcome.images_per_second,
    }


def _write_results(
    experiment: Experiment, module: JTLN, result: dict[str, Any], plan: dict[str, Any] | None, seconds: float
) -> None:
    folder, source, target = experiment.folder, module.source, module.target
    pictures = folder / "plots"
    pictures.mkdir(exist_ok=True)
    sentences: list[str] = []
    if plan is not None and module.transport is not None:
        cost = module.transport.cost.cpu()
        save_cost(folder / "cost.csv", cost, source, target)
        strongest = strongest_transports(plan["plan"], source.names, target.names)
        sentences = transport_sentences(strongest, limit=6)
        result["transport"] = {
            "epsilon": module.transport.epsilon,
            "lambda_ot": experiment.method.lambda_ot,
            "lambda_ot_unit": experiment.method.lambda_ot_unit,
            "on": module.on,
            "plan_entropy": plan["plan_entropy"],
            "strongest": strongest,
        }
        title = f"cost {experiment.cost_name}"
        plots.cost_heatmap(cost, source.names, target.names, title).savefig(pictures / "cost.png")
        plots.plan_heatmap(plan["plan"], source.names, target.names).savefig(pictures / "plan.png")
    result["seconds_in_all"] = seconds
    plots.training_curves(folder / "metrics.csv").savefig(pictures / "training.png")
    plots.confusion(module.test_confusion.cpu(), target.names).savefig(pictures / "confusion.png")
    (folder / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(folder)
    _show(result, sentences, folder)


def _show(result: dict[str, Any], sentences: Sequence[str], folder: Path) -> None:
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


def _log_summary(logger: Logger, result: dict[str, Any], folder: Path) -> None:
    """The end results and plots to W&B's summary page."""
    run: Any = logger.experiment  # type: ignore[attr-defined]
    for head in ("target", "source"):
        for split in ("val", "test"):
            for key, value in result[head][split].items():
                run.summary[f"best/{split}/{head}/{key}"] = value
    import wandb

    run.log({path.stem: wandb.Image(str(path)) for path in sorted((folder / "plots").glob("*.png"))})
