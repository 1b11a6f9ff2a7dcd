"""What a run writes into its folder."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from jtln.costs import is_constant
from jtln.costs.calibration import Calibration
from jtln.costs.file import save_cost
from jtln.data.duplicates import Repeat
from jtln.data.pairs import Pair
from jtln.heads.discriminant import HeadEnd
from jtln.module import JTLN
from jtln.reporting import plots
from jtln.reporting.run_page import strongest_transports, transport_sentences, write_report
from jtln.training.experiment import Experiment
from jtln.training.log import cost_sentences, head_sentences, show_result
from jtln.training.pretraining import Pretrained
from jtln.training.provenance import git_commit, hardware, versions
from jtln.training.trainer import Outcome
from jtln.transport.plans import plan_summary


@rank_zero_only
def write_settings(experiment: Experiment) -> None:
    experiment.folder.mkdir(parents=True, exist_ok=True)
    (experiment.folder / "config.yaml").write_text(experiment.config, encoding="utf-8")
    lines = "".join(f"- {json.dumps(override)}\n" for override in experiment.overrides)
    (experiment.folder / "overrides.yaml").write_text(lines or "[]\n", encoding="utf-8")


@rank_zero_only
def write_split(folder: Path, pair: Pair, repeated: Sequence[Repeat] = ()) -> None:
    """split.csv: the target's labelled and validation images; where there are any, skipped.csv: the broken ones, and
    repeated.csv: those that are in the pair twice."""
    target = pair.target
    rows = [
        (part, target.classes.names[label], image)
        for part, images in (("train", target.train), ("val", target.val))
        for image, label in zip(images.names, images.labels.tolist(), strict=True)
    ]
    _write_table(folder / "split.csv", ("part", "class", "image"), rows)
    if pair.skipped:
        _write_table(folder / "skipped.csv", ("image", "reason"), pair.skipped)
    if repeated:
        _write_table(folder / "repeated.csv", Repeat._fields, repeated)


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    # A file's name may be in another encoding than the system's: what cannot be written is written as \udcXX.
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


@torch.no_grad()
def mean_plan(module: JTLN, pair: Pair, transform: Callable[[Tensor], Tensor], batch: int = 256) -> dict[str, Any]:
    """The mean transport plan between what both heads predict in the end, over the validation images of the task (or
    tasks) that feed the transport loss."""
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


def describe(
    experiment: Experiment, module: JTLN, trainer: pl.Trainer, outcome: Outcome, pretrained: Pretrained | None
) -> dict[str, Any]:
    method = experiment.method
    return {
        "method": method.name,
        "dataset": experiment.dataset,
        "cost": experiment.cost_name if module.transport is not None else None,
        "shots": experiment.spec.shots,
        "rate": experiment.spec.rate,
        "seed": experiment.seed,
        "overrides": list(experiment.overrides),
        "command": experiment.command,
        "settings": experiment.settings,
        "git_commit": git_commit(),
        "versions": versions(),
        "hardware": hardware(trainer),
        "target": outcome.metrics["target"],
        "source": outcome.metrics["source"],
        "transport": None,
        "head_end": head_end(module),
        "target_only": None,
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
        "seeds_differ_in_test": experiment.spec.seeds_differ_in_test or experiment.seed_draws_classes,
        "seconds": outcome.seconds,
        "images_per_second": outcome.images_per_second,
    }


def head_end(module: JTLN) -> dict[str, float] | None:
    """What the validation images chose of the target head's end; None where it stayed as it was trained."""
    if bool(module.head_found[0] < 0):
        return None
    return {name: round(value, 6) for name, value in HeadEnd(*module.head_found.tolist())._asdict().items()}


def calibration(module: JTLN) -> dict[str, float | None] | None:
    """What the labelled images bore out of the cost; None where they were not asked. JSON knows no infinity: null."""
    if bool(module.calibration[0] <= 0):
        return None
    found = Calibration(*module.calibration.tolist())
    chance = math.log(len(module.target))
    epsilon = found.epsilon if math.isfinite(found.epsilon) else None
    return {"epsilon": epsilon, "surprise": found.surprise, "chance": chance}


def write_results(
    experiment: Experiment, module: JTLN, result: dict[str, Any], plan: dict[str, Any] | None, seconds: float
) -> None:
    folder, source, target = experiment.folder, module.source, module.target
    pictures = folder / "plots"
    pictures.mkdir(exist_ok=True)
    sentences: list[str] = []
    if module.transport is not None:
        # As it was given, if it does not change: what calibration made of it is in the checkpoints.
        fixed = module.given_cost if experiment.cost.updates == "never" else None
        cost = (module.transport.cost if fixed is None else fixed).cpu()
        save_cost(folder / "cost.csv", cost, source, target)
        result["transport"] = {
            "epsilon": module.transport.epsilon,
            "lambda_ot": experiment.method.lambda_ot,
            "lambda_ot_unit": experiment.method.lambda_ot_unit,
            "lambda_label": module.lambda_label,
            "on": module.on,
            "calibration": calibration(module),
        }
        if not is_constant(cost):
            sentences = cost_sentences(result["transport"]["calibration"])
        title = f"cost {experiment.cost_name}"
        plots.cost_heatmap(cost, source.names, target.names, title).savefig(pictures / "cost.png")
        if plan is not None:
            # Under a constant cost the plan is what the two heads predict, each for itself: nothing is matched.
            constant = is_constant(module.transport.cost)
            strongest = {} if constant else strongest_transports(plan["plan"], source.names, target.names)
            result["transport"] |= {"plan_entropy": plan["plan_entropy"], "strongest": strongest}
            sentences = [*sentences, *transport_sentences(strongest, limit=6)]
            plots.plan_heatmap(plan["plan"], source.names, target.names).savefig(pictures / "plan.png")
    sentences = [*sentences, *head_sentences(result["head_end"])]
    result["seconds_in_all"] = seconds
    plots.training_curves(folder / "metrics.csv").savefig(pictures / "training.png")
    plots.confusion(module.test_confusion.cpu(), target.names).savefig(pictures / "confusion.png")
    (folder / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(folder)
    show_result(result, sentences, folder)


def log_summary(logger: Logger, result: dict[str, Any], folder: Path) -> None:
    """The end results and plots to W&B's summary page."""
    run: Any = logger.experiment  # type: ignore[attr-defined]
    for head in ("target", "source"):
        for split in ("val", "test"):
            for key, value in result[head][split].items():
                run.summary[f"best/{split}/{head}/{key}"] = value
    import wandb

    run.log({path.stem: wandb.Image(str(path)) for path in sorted((folder / "plots").glob("*.png"))})
