"""One run, from a description of it to a folder with everything that came of it."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import pytorch_lightning as pl
import torch

from jtln.data.duplicates import repeats
from jtln.data.pairs import Pair, PairSpec
from jtln.data.synthetic import synthetic_pair
from jtln.data.transforms import Augment
from jtln.inference.classifier import KEY, Description
from jtln.module import JTLN
from jtln.training.experiment import Experiment
from jtln.training.log import announce_data, announce_training, say
from jtln.training.negative_transfer import NegativeTransfer, watch
from jtln.training.pretraining import Pretrained, pretrain, reset
from jtln.training.run_folder import describe, log_summary, mean_plan, write_results, write_settings, write_split
from jtln.training.trainer import Budget, csv_logger, fit_and_test, make_trainer, pair_data, steps_done
from jtln.transport.loss import TransportLoss


def run(experiment: Experiment) -> dict[str, Any]:
    """Train, choose by validation, test once, and write the run folder; returns what ``result.json`` holds.

    In several processes every process calls this, and the first alone writes and prints.
    """
    started = time.perf_counter()
    reset()
    spec, folder = experiment.spec, experiment.folder
    write_settings(experiment)
    if experiment.method.uses_cost and experiment.cost.updates == "never":
        # A class that the cost does not know is said now, not after images were decoded and a trunk pre-trained.
        experiment.cost.matrix(spec.source_classes, spec.target_classes)
    pair = spec.load() if experiment.made_images is None else synthetic_pair(spec, per_class=experiment.made_images)
    experiment = replace(experiment, budget=_fitting(experiment.budget, pair))
    augment = _augment(spec) if experiment.augment else None
    repeated = repeats(pair)
    write_split(folder, pair, repeated)
    announce_data(experiment, pair, repeated)

    pretrained = None
    if experiment.pretraining is not None:
        pretrained = pretrain(
            pair,
            experiment.make_trunk,
            experiment.pretraining.fitted(len(pair.source.train)),
            experiment.trainer,
            augment=augment,
            cache=experiment.cache,
            depends=experiment.pretraining_depends,
            num_workers=experiment.num_workers,
        )
    compared = watch(experiment, pair, augment, build_module)
    pl.seed_everything(experiment.seed, verbose=False)
    module = build_module(experiment, pair, pretrained)
    module.hparams[KEY] = asdict(Description.of(spec, experiment.trunk, experiment.test_views))
    data = pair_data(
        pair,
        module.trunk,
        experiment.budget,
        seed=experiment.seed,
        augment=augment,
        use_source=module.uses_source,
        use_target=module.uses_target,
        num_workers=experiment.num_workers,
        test_views=experiment.test_views,
    )
    passes = data.passes(experiment.budget.steps)
    announce_training(experiment, pair, module, pretrained, passes)

    last = folder / "checkpoints" / "last.ckpt"
    checkpoint = last if experiment.resume and last.is_file() else None
    done = steps_done(checkpoint)
    if experiment.resume:
        say("resumed", f"after {done} steps" if checkpoint else "from the start: there is no checkpoint yet")
    loggers = [csv_logger(folder, keep_steps=done), *experiment.loggers]
    callbacks = [] if compared is None else [compared]
    trainer = make_trainer(experiment.trainer, experiment.budget, folder, loggers, callbacks)
    outcome = fit_and_test(trainer, module, data, checkpoint)

    result = describe(experiment, module, trainer, outcome, pretrained)
    if isinstance(compared, NegativeTransfer):
        result["target_only"] = compared.result(result["target"]["val"]["accuracy"])
    if trainer.is_global_zero:
        plan = mean_plan(module, pair, data.transform_eval) if module.lambda_ot > 0 else None
        write_results(experiment, module, result, plan, time.perf_counter() - started)
        for logger in experiment.loggers:
            log_summary(logger, result, folder)
    return result


def build_module(experiment: Experiment, pair: Pair, pretrained: Pretrained | None = None) -> JTLN:
    """The network with its objective, started from the pre-trained weights where there are any."""
    method, source, target = experiment.method, pair.source.classes, pair.target.classes
    transport = cost = None
    if method.uses_cost:
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
        method.penalty,
        head_end=method.head_end,
        calibrate=experiment.calibrate,
        freeze_trunk=method.freeze_trunk,
        lambda_source=method.lambda_source,
        lambda_ot=method.lambda_ot,
        lambda_label=method.lambda_label,
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


def _augment(spec: PairSpec) -> Augment:
    same_size = spec.crop is None and spec.stored_size == spec.image_size
    return Augment(spec.flip, spec.shift, spec.crop, None if same_size else spec.image_size)


def _fitting(budget: Budget, pair: Pair) -> Budget:
    """A batch never holds an image twice: a task with fewer images than a batch gives all of them each step."""
    return replace(
        budget,
        source_batch_size=min(budget.source_batch_size, len(pair.source.train)),
        target_batch_size=min(budget.target_batch_size, len(pair.target.train)),
    )
