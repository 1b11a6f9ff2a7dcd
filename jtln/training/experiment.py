"""Everything that a run is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from jtln.costs import Cost
from jtln.data.pairs import PairSpec
from jtln.errors import UserError
from jtln.heads import Head
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
        pretraining_depends: what the pre-trained trunk depends on beside the pair and ``pretraining``.
        cache: folder of what runs share; None keeps nothing.
        num_workers: processes that read images for each loader; None: as the data and the machine suggest.
        compare_target_only: whether a run with the target alone precedes, to warn of negative transfer.
        synthetic_images: synthetic images a class in place of real ones; None: real ones.
        seed_draws_classes: whether the pair's split_seed follows the seed.
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
    pretraining_depends: dict[str, Any] = field(default_factory=dict)
    trunk: dict[str, Any] = field(default_factory=dict)
    cache: Path | None = None
    num_workers: int | None = None
    test_views: str = "none"
    loggers: Sequence[Logger] = ()
    compare_target_only: bool = False
    synthetic_images: int | None = None
    seed_draws_classes: bool = False
    resume: bool = False
    report: bool = True
    config: str = ""
    overrides: Sequence[str] = ()
    command: str = "python train.py"
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def uses_cost(self) -> bool:
        """Whether the objective or the head reads the cost."""
        return self.method.uses_transport or self.head.uses_cost

    @property
    def calibrates(self) -> bool:
        """Whether the labelled images calibrate the cost: not one that is read off them, nor without a source head."""
        fixed = self.uses_cost and self.cost.updates == "never"
        return fixed and self.transport.calibrate and self.pretraining is not None

    def __post_init__(self) -> None:
        check_fit(self.method, self.head, self.cost, self.cost_name, self.pretraining is not None)


def check_fit(method: Method, head: Head, cost: Cost, cost_name: str, pretrained: bool) -> None:
    """Raise a UserError where method, head and cost do not fit, or read a source head that nothing has trained.

    Args:
        cost_name: what the user calls it.
        pretrained: whether the trunk and the source head learn the source set first.
    """
    uses_cost = method.uses_transport or head.uses_cost
    reads_both = method.uses_transport and (method.lambda_source > 0 or method.ot_images == "both")
    reads_both |= method.lambda_ot > 0 and method.ot_images == "source"
    if uses_cost and cost.updates == "ema" and not reads_both:
        raise UserError(
            "expected training batches of both tasks and a transport term for a cost that follows them, but got "
            f"update=ema of cost={cost_name} with method={method.name}: give cost.update=once"
        )
    without_source = not method.keeps_source
    readers = {
        f"method={method.name}": method.penalty is not None and method.penalty.needs_source_head,
        "method.lambda_ot without lambda_source": method.lambda_ot > 0 and without_source,
        "method.lambda_label without lambda_source": method.lambda_label > 0 and without_source,
        f"cost={cost_name}": uses_cost and cost.needs_source_head,
    }
    for reader, reads in readers.items():
        if reads and not pretrained:
            raise UserError(
                f"expected a source head that was trained on the source set for {reader}, but got pretrain=none: "
                "give pretrain=source"
            )
