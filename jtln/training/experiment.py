"""Everything that a run is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from jtln.costs import Cost
from jtln.data.pairs import PairSpec
from jtln.errors import UserError
from jtln.heads import AUTO, Head
from jtln.methods import Method
from jtln.module import Optimization
from jtln.training.pretraining import Pretraining
from jtln.training.trainer import Budget, TrainerSettings
from jtln.transport import TransportSettings
from jtln.trunks import Trunk


@dataclass(frozen=True)
class Experiment:
    """A run before it starts.

    Attributes:
        method: the objective during training.
        head: how the target classifier is formed after it.
        cost: relates the classes; read where the method or the head uses it.
        transport: how the cost is used.
        spec: the pair of tasks.
        make_trunk: returns the network that both tasks share.
        dataset, cost_name: the names that results are filed under.
        trunk: the configuration that ``make_trunk`` goes by.
        trunk_views: views of each training image whose features are computed, where the trunk is frozen.
        fits_source_head: whether the source head is fitted to the trunk's features of the source images before the run.
        pretraining_depends: what the pre-trained trunk depends on beside the pair and ``pretraining``.
        cache: folder of what runs share; None keeps nothing.
        num_workers: processes that read images for each loader; None: as the data and the machine suggest.
        compare_target_only: whether a run with the target alone precedes, to warn of negative transfer.
        synthetic_images: synthetic images a class in place of real ones; None: real ones.
        seed_draws_classes: whether the pair's split_seed follows the seed.
        resume: whether it goes on from the last checkpoint in its folder, where there is one.
        requeue: whether a Slurm job that is warned of its time limit is put back into the queue.
        loggers, callbacks: beside those that every run has.
        report: whether the folder gets plots and a page.
        config: the composed configuration, YAML.
        settings: hashes of the run, and of its configuration in a study.
    """

    method: Method
    head: Head
    cost: Cost
    transport: TransportSettings
    spec: PairSpec
    make_trunk: Callable[[], Trunk]
    budget: Budget
    optimization: Optimization
    trainer: TrainerSettings
    folder: Path
    dataset: str
    cost_name: str
    seed: int = 0
    augment: bool = True
    pretraining: Pretraining | None = None
    fits_source_head: bool = False
    pretraining_depends: dict[str, Any] = field(default_factory=dict)
    trunk: dict[str, Any] = field(default_factory=dict)
    trunk_views: int = 1
    cache: Path | None = None
    num_workers: int | None = None
    test_views: str = "none"
    loggers: Sequence[Logger] = ()
    callbacks: Sequence[Callback] = ()
    compare_target_only: bool = False
    synthetic_images: int | None = None
    seed_draws_classes: bool = False
    resume: bool = False
    requeue: bool = False
    report: bool = True
    config: str = ""
    overrides: Sequence[str] = ()
    command: str = "python train.py"
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def uses_cost(self) -> bool:
        """True if the objective or the head reads the cost."""
        return self.method.uses_transport or self.head.uses_cost

    @property
    def uses_plan(self) -> bool:
        """True if the objective or the head, its prior apart, reads the cost."""
        return self.method.uses_transport or self.head.reads_plan

    @property
    def calibrates(self) -> bool:
        """True if the labelled images calibrate the cost, which must be fixed, under a trained source head."""
        fixed = self.uses_cost and self.cost.updates == "never"
        return fixed and self.transport.calibrate and self.source_head_trained

    @property
    def source_head_trained(self) -> bool:
        """True if the source head is trained before the run: here, or by those who published the weights."""
        trained_here = self.pretraining is not None or self.fits_source_head
        return trained_here or self.spec.classifier_rows is not None

    @property
    def computes_features(self) -> bool:
        """True if the trunk stays as it is, so that its features are computed once."""
        return bool(self.trunk.get("freeze")) or not self.method.has_terms

    def __post_init__(self) -> None:
        self.check_fit(self.source_head_trained)
        for callback in self.callbacks:
            monitor = str(getattr(callback, "monitor", None))
            if monitor.startswith("val/") and not self.spec.validates:
                raise UserError(
                    f"expected validation images for {type(callback).__name__}, which monitors {monitor}, but got "
                    "dataset.validation=0"
                )
        if self.compare_target_only and not self.spec.validates:
            raise UserError("expected validation images for compare_target_only, but got dataset.validation=0")
        asked = {"pretrain=source": self.pretraining is not None, "pretrain=head": self.fits_source_head}
        for key in (key for key, given in asked.items() if given and not self.spec.has_source_images):
            raise UserError(f"expected source images for {key}, but the source has none: give pretrain=none")

    def check_fit(self, trained: bool) -> None:
        """Raise a UserError where the parts do not fit, see :func:`check_fit`.

        Args:
            trained: whether the source head is trained: known for certain once the weights are loaded.
        """
        images, frozen = self.spec.has_source_images, bool(self.trunk.get("freeze"))
        check_fit(self.method, self.head, self.cost, self.cost_name, trained, images, frozen)


def check_fit(
    method: Method,
    head: Head,
    cost: Cost,
    cost_name: str,
    pretrained: bool,
    source_images: bool = True,
    frozen: bool = False,
) -> None:
    """Raise a UserError where method, head and cost do not fit, or read what is not there.

    Args:
        method: the run's.
        head: the run's.
        cost: the run's.
        cost_name: what the user calls it.
        pretrained: whether the source head is trained before the run starts.
        source_images: whether the source has images.
        frozen: whether the trunk stays as it is.
    """
    if not method.has_terms and not head.replaces:
        raise UserError(
            f"expected a term for head={head.name}, which training forms, but method={method.name} has none: give "
            "head=logistic"
        )
    if frozen and method.penalty is not None and method.penalty.needs_trunk:
        raise UserError(
            f"expected a trunk that is trained for method={method.name}, but got trunk.freeze=true, under which the "
            "method does nothing: leave it out"
        )
    uses_cost = method.uses_transport or head.uses_cost
    reads_both = method.uses_transport and (method.lambda_source > 0 or method.ot_images == "both")
    reads_both |= method.lambda_ot > 0 and method.ot_images == "source"
    if uses_cost and cost.updates == "ema" and not reads_both:
        raise UserError(
            "expected training batches of both tasks and a transport term for a cost that follows them, but got "
            f"update=ema of cost={cost_name} with method={method.name}: give cost.update=once"
        )
    without_source = not method.keeps_source
    if head.prior != 0 and cost.updates in ("epoch", "ema"):
        raise UserError(
            "expected a cost that is read before training for a prior, which does not follow it, but got "
            f"update={cost.updates} of cost={cost_name}: give cost.update=once"
        )
    if head.prior == AUTO and cost.updates != "never":
        raise UserError(
            f"expected a cost that has not seen the labelled images for head.prior=auto, which they choose, but "
            f"cost={cost_name} is read off them: give head.prior=0.5, for instance"
        )
    images = {
        f"head={head.name}": head.reads_source,
        f"cost={cost_name}": uses_cost and cost.reads_source,
        f"method={method.name} (lambda_source)": method.lambda_source > 0,
        f"method={method.name} (ot_images={method.ot_images})": method.lambda_ot > 0 and method.ot_images != "target",
    }
    for reader, reads in images.items():
        if reads and not source_images:
            raise UserError(
                f"expected source images for {reader}, but a published classifier has none: choose another, or a "
                "source with images (dataset/source=imagenet)"
            )
    readers = {
        f"head={head.name} with a prior": head.prior != 0,
        f"method={method.name}": method.penalty is not None and method.penalty.needs_source_head,
        "method.keep": method.keep > 0,
        "method.lambda_ot without lambda_source": method.lambda_ot > 0 and without_source,
        "method.lambda_label without lambda_source": method.lambda_label > 0 and without_source,
        f"cost={cost_name}": uses_cost and cost.needs_source_head,
    }
    for reader, reads in readers.items():
        if reads and not pretrained:
            raise UserError(
                f"expected a source head that was trained on the source set for {reader}, but got pretrain=none: "
                "give pretrain=source, or pretrain=head where the trunk has weights"
            )
