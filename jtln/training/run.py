"""One run, from a description of it to a folder with everything that came of it."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jtln import distributed
from jtln.data.duplicates import repeats
from jtln.data.features import Features
from jtln.data.loaders import PairData
from jtln.data.pairs import Pair, PairSpec
from jtln.data.synthetic import synthetic_pair
from jtln.data.transforms import Augment
from jtln.errors import UserError
from jtln.heads import Head, HeadFit, HeadInputs, Logistic, SourcePlan
from jtln.inference.classifier import KEY, Description
from jtln.module import JTLN
from jtln.storage import read_torch, save_torch
from jtln.training.callbacks import CollectPredictions
from jtln.training.class_costs import FollowFeatures, RunCost, RunPrior, read_cost, read_prior, source_plan
from jtln.training.experiment import Experiment
from jtln.training.frozen import PARTS, ComputedFeatures, feature_data, feature_precision
from jtln.training.log import log, log_data, log_training
from jtln.training.pretraining import Pretrained, fit_source_head, pretrain
from jtln.training.run_folder import (
    check_split,
    describe,
    log_summary,
    mean_plan,
    write_results,
    write_settings,
    write_split,
)
from jtln.training.target_only import CompareTargetOnly, Curve, ValidationCurve, compare_target_only
from jtln.training.trainer import (
    Budget,
    check_trainer,
    csv_logger,
    evaluate,
    fit,
    fit_best,
    keep_untrained,
    make_trainer,
    pair_data,
    steps_done,
)
from jtln.training.wandb_run import RunLogger
from jtln.transport import class_plan
from jtln.trunks import Trunk
from jtln.trunks.rebuild import is_published, trunk_digest


def run(experiment: Experiment) -> dict[str, Any]:
    """Train, choose by validation, form the head, test once, and write the run folder.

    In several processes every process calls this, and the first alone writes and prints.

    Returns:
        The content of ``result.json``.
    """
    started = time.perf_counter()
    distributed.reset()
    _check_cost(experiment)
    check_trainer(experiment.trainer, experiment.budget, experiment.folder)
    pl.seed_everything(experiment.seed, verbose=False)
    network = trunk = experiment.make_trunk()  # first, so that a mistake in its settings does not wait for the images
    random_state = torch.get_rng_state()
    has_weights = network.published is not None or experiment.synthetic_images is None  # else they are not fetched
    if has_weights:
        has_classifier(network, experiment.spec)
    checkpoint, done = _last_checkpoint(experiment)
    pair = _load(experiment, resumes=checkpoint is not None)
    experiment = replace(experiment, budget=_fitting(experiment.budget, pair))
    pretrained = _pretrain(experiment, pair)
    callbacks = _callbacks(experiment, pair)

    pl.seed_everything(experiment.seed, verbose=False)
    torch.set_rng_state(random_state)  # what is before here leaves the run's random numbers as they are
    source_head, trained = _source_head(experiment, network, pair, pretrained, has_weights)
    data = _data(experiment, pair, network)
    if experiment.resume:
        log("resumed", f"after {done} steps" if checkpoint else "from the start: there is no checkpoint yet")
    trainer = _trainer(experiment, pair, callbacks.all, done)
    network.to(trainer.strategy.root_device)
    if experiment.computes_features:
        data, trunk = _computed(experiment, data, network, trainer), ComputedFeatures(network)
    features = Features(trunk, data, trainer.strategy.root_device)
    if experiment.fits_source_head:
        count = fit_source_head(source_head, features)
        log("start", f"source head: logistic regression on {count} source images")
    cost, prior = _cost_and_prior(experiment, pair, features, source_head, trained)
    if callbacks.follow is not None and cost is not None:
        callbacks.follow.matrix = cost.used

    sizes = len(pair.source.classes), len(pair.target.classes)
    loss = None if cost is None else cost.loss(experiment.method, experiment.transport)
    log_q = None if prior is None else prior.prior
    module = JTLN(trunk, *sizes, experiment.method, loss, experiment.optimization, source_head, log_q)
    module.hparams[KEY] = asdict(Description.of(experiment.spec, experiment.trunk, experiment.test_views, pair.white))
    data.use_source, data.use_target = module.reads("source"), module.reads("target")
    _check_batch_norms(module, data, trainer.world_size)
    log_training(experiment, pair, module, cost, pretrained, data.passes(experiment.budget.steps), prior)

    if checkpoint is None:
        start_target_head(module, features)
    fitted = fit_best(trainer, module, data, checkpoint, done) if module.terms else keep_untrained(trainer, module)
    matrix = _matrix_in_use(module, callbacks.follow, cost)
    between = None
    if cost is not None and experiment.head.reads_plan and not len(pair.target.val):
        between = source_plan(experiment.cost, pair.source.classes, cost.calibration, experiment.transport)
    head_fit = form_head(experiment.head, module, features, matrix, experiment.transport.epsilon, between)
    if trainer.is_global_zero:
        named = not experiment.report and pretrained is None and is_published(network, experiment.trunk)
        _complete(fitted.best, experiment.head, module, None if trunk is network else network, named)
    metrics = evaluate(trainer, module, data)

    result = describe(experiment, trunk.name, trainer, metrics, fitted, cost, pretrained, head_fit, prior)
    if callbacks.compared is not None:
        result["target_only"] = asdict(callbacks.compared.result())
    if trainer.is_global_zero:
        plan = mean_plan(module, data.pair, data.transform_eval) if experiment.method.lambda_ot > 0 else None
        shown = matrix if callbacks.follow is not None or cost is None else cost.given
        between_classes = None
        if prior is not None:
            between_classes = prior.relation.rows / len(prior.relation.rows)
        elif matrix is not None:
            between_classes = class_plan(matrix, experiment.transport.epsilon)
        related = between_classes if prior is None else prior.shares
        found, seconds = callbacks.predictions.found, time.perf_counter() - started
        assert found is not None
        write_results(experiment, pair, module, result, shown, related, plan, found, seconds)
        for logger in experiment.loggers:
            log_summary(logger, result, experiment.config, experiment.folder)
            if isinstance(logger, RunLogger):
                drawn = between_classes if plan is None else plan["plan"]
                logger.log_result(result, pair, found, fitted.best, shown, drawn)
    return result


def _last_checkpoint(experiment: Experiment) -> tuple[Path | None, int]:
    """Return the checkpoint to go on from, None where there is none, and the steps behind it."""
    last = experiment.folder / "checkpoints" / "last.ckpt"
    checkpoint = last if experiment.resume and last.is_file() else None
    done = steps_done(checkpoint)
    if done > experiment.budget.steps:
        raise UserError(
            f"expected epochs x steps_per_epoch of at least the {done} steps that the run in {experiment.folder} has "
            f"done, but got {experiment.budget.epochs} x {experiment.budget.steps_per_epoch}: give more epochs"
        )
    return checkpoint, done


class _Callbacks(NamedTuple):
    """All callbacks of a run, and those whose outcome it reads."""

    all: list[Callback]
    predictions: CollectPredictions
    compared: CompareTargetOnly | None  # with the target alone; None: not asked for
    follow: FollowFeatures | None  # keeps the cost up to date; None: the cost is fixed


def _callbacks(experiment: Experiment, pair: Pair) -> _Callbacks:
    predictions = CollectPredictions()
    every: list[Callback] = [predictions, *experiment.callbacks]
    if experiment.loggers and not any(isinstance(each, LearningRateMonitor) for each in every):
        every.append(LearningRateMonitor("step"))
    compared = follow = None
    if experiment.compare_target_only and not _is_target_only(experiment):
        compared = compare_target_only(experiment, len(pair.target.val), lambda alone: _curve(alone, pair))
        every.append(compared)
    if experiment.uses_cost and experiment.cost.updates in ("epoch", "ema"):
        follow = FollowFeatures(experiment.cost, pair)
        every.append(follow)
    return _Callbacks(every, predictions, compared, follow)


def _source_head(
    experiment: Experiment, network: Trunk, pair: Pair, pretrained: Pretrained | None, has_weights: bool
) -> tuple[nn.Linear, bool]:
    """Return the source head that the run starts from, and whether it is trained or will be before it is read."""
    source_head = nn.Linear(network.dim, len(pair.source.classes))
    if pretrained is not None:
        pretrained.load_into(network, source_head)
        return source_head, True
    if not has_weights:
        return source_head, True
    trained = take_published(source_head, network, experiment.spec) or experiment.fits_source_head
    experiment.check_fit(trained)
    return source_head, trained


def _trainer(experiment: Experiment, pair: Pair, callbacks: list[Callback], done: int) -> pl.Trainer:
    trainer = make_trainer(
        experiment.trainer,
        experiment.budget,
        experiment.folder,
        [csv_logger(experiment.folder, keep_steps=done), *experiment.loggers],
        callbacks,
        validates=bool(len(pair.target.val)),
        requeue=experiment.requeue,
    )
    for logger in experiment.loggers:
        if isinstance(logger, RunLogger):
            logger.define_metrics()
    return trainer


def _cost_and_prior(
    experiment: Experiment, pair: Pair, features: Features, source_head: nn.Linear, trained: bool
) -> tuple[RunCost | None, RunPrior | None]:
    """Read and calibrate the cost, and form the prior, where the objective or the head uses them."""
    if not experiment.uses_cost:
        return None, None
    head, settings, calibrates = experiment.head, experiment.transport, experiment.calibrates and trained
    for_plan = calibrates and experiment.uses_plan
    cost = read_cost(experiment.cost, pair, features, source_head.to(features.device), settings, for_plan)
    if head.prior == 0:
        return cost, None
    learns = experiment.method.keeps_source
    unknown = experiment.cost.unknown(pair.source.classes, pair.target.classes).target
    return cost, read_prior(head, cost.given, features, source_head, settings, calibrates, learns, unknown)


def compute_features(experiment: Experiment) -> tuple[int, float]:
    """Compute the features of a run's images ahead of it, into the cache.

    Returns:
        How many images the run has, and how many seconds it took.

    Raises:
        UserError: the run trains its trunk, so that its features change.
    """
    if not experiment.computes_features:
        raise UserError("expected a trunk that stays as it is, but got trunk.freeze=false: give trunk.freeze=true")
    pl.seed_everything(experiment.seed, verbose=False)
    trunk = experiment.make_trunk()
    pair = experiment.spec.load()
    pretrained = _pretrain(experiment, pair)
    if pretrained is not None:
        pretrained.load_into(trunk, nn.Linear(trunk.dim, len(pair.source.classes)))
    with TemporaryDirectory() as folder:
        trainer = make_trainer(experiment.trainer, experiment.budget, Path(folder), keep_checkpoints=False)
        started = time.perf_counter()
        _computed(experiment, _data(experiment, pair, trunk), trunk.to(trainer.strategy.root_device), trainer)
    images = sum(len(getattr(task, part)) for task in (pair.source, pair.target) for part in PARTS)
    return images, time.perf_counter() - started


def _computed(experiment: Experiment, data: PairData, trunk: Trunk, trainer: pl.Trainer) -> PairData:
    device, asked = trainer.strategy.root_device, str(experiment.trainer.options.get("precision"))
    precision = feature_precision(asked, device)
    if precision != asked:
        log("features", f"in float32: {device} has no bfloat16 in hardware, which {asked} asks for")
    return feature_data(
        data,
        trunk,
        device,
        cache=experiment.cache,
        views=experiment.trunk_views,
        precision=precision,
        context=trainer.precision_plugin.forward_context if precision == asked else None,
    )


def make_trunk(experiment: Experiment) -> None:
    """Put the pre-trained trunk of a run into the cache, where it is not yet; the run's folder is not written."""
    spec, count = experiment.spec, experiment.synthetic_images
    pretrained = _pretrain(experiment, spec.load() if count is None else synthetic_pair(spec, per_class=count))
    if pretrained is not None:
        found = "in the cache" if pretrained.cached else "trained"
        log("trunk", f"pre-trained on the source set, validation accuracy {100 * pretrained.accuracy:.1f}%, {found}")


def _matrix_in_use(module: JTLN, follow: FollowFeatures | None, cost: RunCost | None) -> Tensor | None:
    """Return the cost (S, T) that goes with the weights that validation chose; None where the run has none."""
    if module.transport is not None:
        return module.transport.cost
    if follow is not None:
        return follow.matrix
    return None if cost is None else cost.used


def start_target_head(module: JTLN, features: Features) -> HeadFit | None:
    """Start the target head where the method has it start; None where that is at the weights that it has.

    Args:
        module: its target head is changed in place.
        features: of the trunk before training.
    """
    if module.method.start_from != "logistic":
        return None
    module.to(features.device)
    target_head = module.target_head
    assert isinstance(target_head, nn.Linear)
    given = HeadInputs(features, (module.source_head.out_features, target_head.out_features), prior=module.log_prior)
    found = Logistic(normalization="mean", temperature=None).fit(target_head, given)
    target_head.load_state_dict(found.classifier.state_dict())
    log("start", "target head: logistic regression on the labelled images, loss {loss:.3g}".format(**found.chosen))
    return found


def form_head(
    head: Head,
    module: JTLN,
    features: Features,
    cost: Tensor | None,
    epsilon: float,
    between: SourcePlan | None = None,
) -> HeadFit | None:
    """Form the target classifier after training, and put it in place of the trained head; None where that one stays.

    Args:
        head: fits the classifier.
        module: its target head is replaced.
        features: under the module's trunk.
        cost: (S, T) that relates the classes; None where nothing does.
        epsilon: of the plan between the classes under it.
        between: gives plans between source classes; None where nothing relates them.
    """
    if not head.replaces:
        return None
    module.to(features.device)
    plan = None
    if head.reads_plan and cost is not None:
        plan = class_plan(cost.to(features.device), epsilon)
    trained = module.target_head
    assert isinstance(trained, nn.Linear)
    sizes = module.source_head.out_features, trained.out_features
    found = head.fit(trained, HeadInputs(features, sizes, plan, module.log_prior, between))
    module.target_head = found.classifier.to(features.device)
    if module.prior is not None:
        module.prior.alpha.div_(found.temperature)
    return found


def has_classifier(trunk: Trunk, spec: PairSpec) -> bool:
    """Return whether the trunk's weights came with a classifier of the source classes.

    Raises:
        UserError: the source has no images, and there is no such classifier, or one of another number of classes.
    """
    published = trunk.published
    if spec.classifier_rows is not None and published is not None and len(published.bias) == spec.classifier_size:
        return True
    if not spec.has_source_images:
        got = "none" if published is None else f"one of {len(published.bias)} classes"
        raise UserError(
            f"expected a classifier of {spec.classifier_size} classes in the weights of {trunk.name} for "
            f"dataset/source=classifier, but got {got}: choose weights with their classifier, or its list of classes "
            "with dataset.source.labels"
        )
    return False


def take_published(source_head: nn.Linear, trunk: Trunk, spec: PairSpec) -> bool:
    """Start the source head from the classifier that the trunk's weights came with, and return whether there was one.

    Raises:
        UserError: as :func:`has_classifier`.
    """
    if not has_classifier(trunk, spec):
        return False
    published, rows = trunk.published, spec.classifier_rows
    assert published is not None
    with torch.no_grad():
        chosen = torch.tensor(rows)
        source_head.weight.copy_(published.weight[chosen] / spec.classifier_temperature)
        source_head.bias.copy_(published.bias[chosen] / spec.classifier_temperature)
    return True


def _complete(path: Path, head: Head, module: JTLN, trunk: Trunk | None, named: bool) -> None:
    """Add the head that was formed to the chosen checkpoint, whose trained weights stay as they are.

    Args:
        path: the checkpoint.
        head: the run's.
        module: has the formed head.
        trunk: the network whose features were computed ahead, which is added as well; None: the checkpoint has it.
        named: whether the trunk's hash is enough, see :mod:`jtln.trunks.rebuild`.
    """
    if not head.replaces and trunk is None:
        return
    checkpoint = read_torch(path)
    if head.replaces:
        kind = f"{type(head).__module__}.{type(head).__qualname__}"
        state = {name: value.detach().cpu() for name, value in module.target_head.state_dict().items()}
        checkpoint["head"] = {"kind": kind, "settings": head.settings(), "state": state}
    if module.prior is not None:
        checkpoint["state_dict"]["prior.alpha"] = module.prior.alpha.cpu()
    if trunk is not None and named:
        checkpoint["trunk_digest"] = trunk.digest or trunk_digest(trunk)
    elif trunk is not None:
        state = {f"trunk.{name}": value.detach().cpu() for name, value in trunk.state_dict().items()}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **state}
    save_torch(checkpoint, path)


def _check_batch_norms(module: JTLN, data: PairData, processes: int) -> None:
    """Raise a UserError where batch norms that learn would see one image in a step: it has no variance."""
    norms = [each for each in module.trunk.modules() if isinstance(each, _BatchNorm)]
    sizes = {"source": data.source_batch_size, "target": data.target_batch_size}
    images = sum(size // processes for side, size in sizes.items() if module.reads(side))
    if norms and not module.trunk.frozen and images < 2:
        raise UserError(
            f"expected 2 or more images in a step of each process for the batch norms of {module.trunk.name}, but got "
            f"{images}: raise batch_size, label more images (dataset.shots), or set trunk.freeze=true"
        )


def _check_cost(experiment: Experiment) -> None:
    """Raise for a class that the cost does not know before images are read and a trunk is pre-trained."""
    if experiment.uses_cost and experiment.cost.updates == "never":
        experiment.cost.matrix(experiment.spec.source_classes, experiment.spec.target_classes)


def _load(experiment: Experiment, resumes: bool) -> Pair:
    """Load the pair, check that a resumed run still has its images, and write the run's first files."""
    spec, count = experiment.spec, experiment.synthetic_images
    pair = spec.load() if count is None else synthetic_pair(spec, per_class=count)
    if resumes:
        check_split(experiment.folder, pair)
    write_settings(experiment)
    duplicates = repeats(pair)
    write_split(experiment.folder, pair, duplicates)
    log_data(experiment, pair, duplicates)
    return pair


def _pretrain(experiment: Experiment, pair: Pair) -> Pretrained | None:
    if experiment.pretraining is None:
        return None
    return pretrain(
        pair,
        experiment.make_trunk,
        experiment.pretraining.fitted(len(pair.source.train)),
        experiment.trainer,
        augment=_augment(experiment),
        cache=experiment.cache,
        depends=experiment.pretraining_depends,
        num_workers=experiment.num_workers,
    )


def _is_target_only(experiment: Experiment) -> bool:
    """Return True if the run uses nothing of the source: neither its images nor a term that needs them."""
    method = experiment.method
    trained_source = experiment.pretraining is not None or experiment.fits_source_head
    reads_source = method.keeps_source or experiment.uses_cost or trained_source
    return not (reads_source or method.penalty is not None or experiment.trunk.get("freeze"))


def _curve(experiment: Experiment, pair: Pair) -> Curve:
    """Train for the curve of the target's validation accuracy, and keep nothing else."""
    pl.seed_everything(experiment.seed, verbose=False)
    trunk = experiment.make_trunk()
    classes = len(pair.source.classes), len(pair.target.classes)
    module = JTLN(trunk, *classes, experiment.method, optimization=experiment.optimization)
    data = _data(experiment, pair, trunk)
    data.use_source = False
    recorder = ValidationCurve()
    with TemporaryDirectory() as folder:
        trainer = make_trainer(
            experiment.trainer,
            experiment.budget,
            Path(folder),
            callbacks=[recorder],
            description="target alone",
            keep_checkpoints=False,
            hidden=("source val",),
        )
        fit(trainer, module, data)
    return recorder.curve


def _data(experiment: Experiment, pair: Pair, trunk: Any) -> PairData:
    return pair_data(
        pair,
        trunk,
        experiment.budget,
        seed=experiment.seed,
        augment=_augment(experiment),
        num_workers=experiment.num_workers,
        test_views=experiment.test_views,
    )


def _augment(experiment: Experiment) -> Augment | None:
    spec: PairSpec = experiment.spec
    if not experiment.augment:
        return None
    same_size = spec.crop is None and spec.stored_size == spec.image_size
    return Augment(spec.flip, spec.shift, spec.crop, None if same_size else spec.image_size)


def _fitting(budget: Budget, pair: Pair) -> Budget:
    """Return a budget whose batches never hold an image twice.

    A task with fewer images than a batch gives all of them each step.
    """
    return replace(
        budget,
        source_batch_size=max(1, min(budget.source_batch_size, len(pair.source.train))),
        target_batch_size=min(budget.target_batch_size, len(pair.target.train)),
    )
