"""What a run is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import Logger

from jtln.costs import Cost
from jtln.data.pairs import PairSpec
from jtln.errors import UserError, unknown
from jtln.heads.discriminant import Discriminant
from jtln.methods import Penalty
from jtln.module import IMAGES, UNITS
from jtln.schedules import Constant, Schedule
from jtln.training.pretraining import Pretraining
from jtln.training.trainer import Budget, TrainerSettings
from jtln.transport.loss import GRADIENTS
from jtln.transport.sinkhorn import check_epsilon, check_limits
from jtln.trunks.base import Trunk

COMPARISONS = ("cached", "train", "off")  # with the target alone: see jtln.training.negative_transfer


@dataclass(frozen=True)
class Method:
    """The objective: which terms, and how they are weighed. The keys of ``conf/method``."""

    name: str
    lambda_source: float = 0.0  # 0: no source image is read unless the transport is on such
    lambda_ot: float = 0.0  # 0: no transport loss
    lambda_label: float = 0.0  # of the transport of the source head's predictions on target images to their labels
    lambda_ot_unit: str = "1/epsilon"
    epsilon: float = 0.1
    on: str = "source"
    gradient: str = "both"
    max_iterations: int = 200
    tolerance: float = 1e-4
    ot_schedule: Schedule = field(default_factory=Constant)
    head_end: Discriminant | None = None  # what becomes of the target head once it is trained
    calibrate: bool = False  # whether the transport loss takes of the cost what the labelled images bear out
    penalty: Penalty | None = None  # a baseline's own term
    freeze_trunk: bool = False

    @property
    def uses_cost(self) -> bool:
        return self.lambda_ot > 0 or self.lambda_label > 0 or self.head_end is not None

    def __post_init__(self) -> None:
        """Refuse what cannot be before any image is read."""
        check_epsilon(self.epsilon)
        for key, choices in {"lambda_ot_unit": UNITS, "on": IMAGES, "gradient": GRADIENTS}.items():
            if getattr(self, key) not in choices:
                raise unknown(f"method.{key}", getattr(self, key), choices)
        for key in ("lambda_source", "lambda_ot", "lambda_label"):
            if not getattr(self, key) >= 0:
                raise UserError(f"expected method.{key} >= 0, but got {getattr(self, key)}")
        check_limits(self.max_iterations, self.tolerance)


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
    trunk: dict[str, Any] = field(default_factory=dict)  # the configuration that make_trunk goes by
    cache: Path | None = None
    num_workers: int | None = None  # None: as the data and the machine suggest
    test_views: str = "none"
    loggers: Sequence[Logger] = ()
    negative_transfer: str = "cached"  # against a target-only run that is cached, or trained ("train"); or "off"
    made_images: int | None = None  # a few made images a class in place of real ones
    seed_draws_classes: bool = False  # whether the pair's split_seed follows the seed
    resume: bool = False
    config: str = ""  # the composed configuration, YAML
    overrides: Sequence[str] = ()
    command: str = "python train.py"
    settings: dict[str, str] = field(default_factory=dict)  # hashes: of the run, and of its row in a table

    @property
    def calibrate(self) -> bool:
        """Whether the labelled images test the cost; not where they gave it, or where no source head reads them."""
        return self.method.calibrate and self.pretraining is not None and self.cost.updates == "never"

    def __post_init__(self) -> None:
        """Refuse what cannot be, such as a source head that nothing has taught where one is read."""
        if self.negative_transfer not in COMPARISONS:
            raise unknown("negative_transfer", self.negative_transfer, COMPARISONS)
        check_fit(self.method, self.cost, self.cost_name, self.pretraining is not None)


def check_fit(method: Method, cost: Cost, cost_name: str, pretrained: bool) -> None:
    """Raise a UserError where a method and a cost do not fit each other, or read a source head that nothing taught.

    Args:
        cost_name: what the user calls it.
        pretrained: whether the trunk and the source head learn the source set first.
    """
    penalty, ot, label = method.penalty, method.lambda_ot > 0, method.lambda_label > 0
    if method.uses_cost and not (ot or (label and method.lambda_source > 0)) and cost.updates == "ema":
        raise UserError(
            "expected a cost that does not follow the batches, for no transport loss reads those of both tasks, "
            f"but got update=ema of cost={cost_name}: give cost.update=once"
        )
    readers = {
        f"method={method.name}": penalty is not None and penalty.needs_source_head,
        "method.lambda_ot without lambda_source": ot and not method.lambda_source,
        "method.lambda_label without lambda_source": label and not method.lambda_source,
        f"cost={cost_name}": method.uses_cost and cost.needs_source_head,
    }
    for reader, reads in readers.items():
        if reads and not pretrained:
            raise UserError(
                f"expected a source head that was trained on the source set for {reader}, but got pretrain=none: "
                "give pretrain=source"
            )
