"""Building of a run's objects from the composed configuration."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.nn import Parameter

from jtln.cli.loggers import make_callbacks, make_loggers
from jtln.cli.overrides import at_least, config_dir, config_dir_given, files, key_of, overrides_given
from jtln.cli.run_folder import AUTO, is_under_way
from jtln.data.pairs import PairSpec
from jtln.data.transforms import VIEWS
from jtln.errors import UserError, unknown
from jtln.heads import Head
from jtln.methods import Method, Penalty
from jtln.module import Optimization
from jtln.schedules import Schedule
from jtln.study.job import row_hash, settings_hash
from jtln.training.experiment import Experiment, check_fit
from jtln.training.frozen import shared_trunk
from jtln.training.pretraining import Pretraining
from jtln.training.trainer import Budget, TrainerSettings
from jtln.transport import TransportSettings
from jtln.trunks import Trunk
from jtln.trunks.alexnet import SMALLEST_FULL
from jtln.trunks.weights import check_fetched, check_weights, is_fetched, weights_digest

MOST_PIXELS = 4096  # a side of an image as the network sees it: more is a slip of the keyboard, too
MOST_VIEWS = 1000  # of a training image, each of which goes through the network
MOST_WORKERS = 256  # for each loader: more is a slip of the keyboard


def build(config: DictConfig) -> Experiment:
    """Return the experiment that ``config`` describes; a UserError says which of its values cannot be."""
    hydra = HydraConfig.get()
    choices = DictConfig(hydra.runtime.choices)
    overrides = [o for o in overrides_given(hydra) if key_of(o) not in ("resume", "report")]  # not what comes of it
    folder = Path(hydra.runtime.output_dir)
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "study"])  # this is one run
    settings: Any = OmegaConf.to_container(config, resolve=True)
    # What follows the seed (dataset.split_seed=${seed}) is the same in all runs of a row.
    of_row: Any = OmegaConf.to_container(OmegaConf.merge(config, {"seed": "*"}), resolve=True)
    smoke = bool(config.debug.smoke)
    _check_keys(config, choices)
    _check_finite(settings)
    budget, seed = _budget(config), _seed(config, "seed")
    if config.pretrain.source:
        _pretraining(config)  # what a real run refuses is refused in one that is shrunk
    if smoke:
        _whole(config, "debug.per_class", 2)
        _whole(config, "debug.batch_size", 1)
        config = _shrunk(config)
        budget = _budget(config)
    spec = spec_of(config)
    method, head, cost_name = _method(config), _head(config), _cost_name(config, choices)
    experiment = Experiment(
        method=method,
        head=head,
        cost=instantiate(config.cost),
        transport=_transport(config),
        spec=spec,
        make_trunk=_make_trunk(config, spec),
        budget=budget,
        optimization=_optimization(config),
        trainer=_trainer(config.trainer),
        folder=folder,
        dataset=spec.name,
        cost_name=cost_name,
        seed=seed,
        augment=bool(config.augment),
        pretraining=_pretraining(config) if config.pretrain.source else None,
        fits_source_head=_fits_source_head(config),
        pretraining_depends=_pretraining_depends(config),
        trunk=_plain(config.trunk),
        trunk_views=_views(config),
        cache=None if smoke else _cache(config),
        num_workers=_num_workers(config),
        test_views=_test_views(config, spec),
        compare_target_only=bool(config.compare_target_only),
        synthetic_images=int(config.debug.per_class) if smoke else None,
        seed_draws_classes=of_row["dataset"].get("split_seed") == "*",
        resume=is_under_way(folder) if config.resume == AUTO else config.resume is not None,
        requeue=config.resume == AUTO,
        report=bool(config.report),
        config=OmegaConf.to_yaml(config, resolve=True),
        overrides=overrides,
        command=" ".join(["python train.py", *map(shlex.quote, (*config_dir_given(hydra), *overrides))]),
        settings={"run": settings_hash(settings, "" if smoke else spec.identity), "row": row_hash(of_row)},
        loggers=make_loggers(config.get("logger") or {}, settings, spec.name, choices, folder),
        callbacks=make_callbacks(config.get("callbacks") or {}),
    )
    return experiment


def check(config: DictConfig, spec: PairSpec) -> None:
    """Raise, before any image is read, the errors that a run with these values would raise.

    Args:
        config: the composed configuration.
        spec: the pair that it describes.
    """
    _check_finite(_plain(config))
    _budget(config)
    _transport(config)
    method, head, cost = _method(config), _head(config), instantiate(config.cost)
    name = type(cost).__name__.removesuffix("Cost").lower()
    trained = bool(config.pretrain.source) or _fits_source_head(config) or spec.classifier_rows is not None
    check_fit(method, head, cost, name, trained, spec.has_source_images, bool(config.trunk.get("freeze")))
    if (method.uses_transport or head.uses_cost) and cost.updates == "never":
        cost.matrix(spec.source_classes, spec.target_classes)  # a class that it does not know
    _optimization(config)
    _num_workers(config)
    if config.pretrain.source:
        _pretraining(config)


def _check_keys(config: DictConfig, choices: DictConfig) -> None:
    """Raise a UserError for a key that no file has: it was given with + and would do nothing.

    The keys of the other groups are arguments of what is called with them.
    """
    for key in map(str, config):
        if key not in _top_keys():
            raise unknown("key", key, sorted(key for key in _top_keys() if " " not in key))
    known: dict[str, frozenset[str]] = {"batch_size": frozenset(["source", "target"])}
    for group in ("pretrain", "debug"):
        if (choice := str(choices[group])) in files(group):  # else it is the user's own
            names = files(group) if group == "pretrain" else [choice]  # a protocol sets keys of another pretrain file
            known[group] = frozenset().union(*(_keys_of(group, name) for name in names))
    for group, keys in known.items():
        for key in map(str, config[group]):
            if key not in keys:
                raise unknown(f"key in '{group}'", key, sorted(keys))


def _check_finite(values: Any, key: str = "") -> None:
    """Raise a UserError for a number that is none, or infinite, wherever it stands."""
    if isinstance(values, dict | list):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        for name, value in pairs:
            _check_finite(value, f"{key}.{name}".lstrip("."))
    elif isinstance(values, float) and not math.isfinite(values):
        raise UserError(f"expected a finite number for {key}, but got {values}")


@functools.cache
def _keys_of(group: str, name: str) -> frozenset[str]:
    """Return the keys of a group's file."""
    content = yaml.safe_load((config_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    inner = [
        str(each).partition("@")[2] for one in content.pop("defaults", ()) if isinstance(one, dict) for each in one
    ]
    return frozenset([*content.get(group, content), *inner])  # a file for the whole configuration names its group


@functools.cache
def _top_keys() -> frozenset[str]:
    known = yaml.safe_load((config_dir() / "train.yaml").read_text(encoding="utf-8"))
    chosen = [name for each in known.pop("defaults") if isinstance(each, dict) for name in each]
    return frozenset([*known, *(name.split("@")[0] for name in chosen)])


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Put the configuration's key before the message of a library class, which names only its own argument."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _made_of(kind: Callable[..., Any], config: DictConfig, key: str) -> Any:
    """``kind`` with the values of ``config.key`` as its arguments."""
    node = config[key]
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in map(str, node):
        if name not in known:  # given with +
            raise unknown(f"key in '{key}'", name, known)
    with _named(key):
        return kind(**instantiate(node, _convert_="all"))


def _method(config: DictConfig) -> Method:
    method: Method = _made_of(Method, config, "method")
    if method.penalty is not None and not isinstance(method.penalty, Penalty):
        raise UserError(f"expected a jtln.methods.Penalty for method.penalty, but got {method.penalty!r}")
    _check_name(method.name, "method.name")
    if method.penalty is None and "penalty" in config.method:
        raise UserError(
            f"expected the penalty of method={method.name}, but got null, without which it is another method: choose "
            "method=consecutive"
        )
    return method


def _transport(config: DictConfig) -> TransportSettings:
    settings: TransportSettings = _made_of(TransportSettings, config, "transport")
    return settings


def spec_of(config: DictConfig) -> PairSpec:
    """Return the pair of a configuration; no image is read."""
    # Images are kept decoded in the user's cache folder, too, where the configuration names none.
    spec = instantiate(OmegaConf.merge(config, {"cache": str(_cache(config))}).dataset)
    if not isinstance(spec, PairSpec):
        raise UserError(f"expected a jtln.data.pairs.PairSpec for dataset, but got {spec!r}: choose a file of dataset")
    _check_name(spec.name, "dataset.name")
    for key in ("image_size", "stored_size"):
        if not getattr(spec, key) <= MOST_PIXELS:
            raise UserError(f"expected dataset.{key} of at most {MOST_PIXELS}, but got {getattr(spec, key)}")
    if spec.shift >= spec.image_size / 2:
        raise UserError(
            f"expected dataset.shift below half of the {spec.image_size} pixels of an image, but got {spec.shift}"
        )
    return spec


def _check_name(name: Any, key: str) -> None:
    """Raise a UserError unless results can be filed under ``name``."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+ -]*", name):
        raise UserError(f"expected a name of letters, digits, spaces, ., + and - for {key}, but got {name!r}")


def _head(config: DictConfig) -> Head:
    head = instantiate(config.head)
    if not isinstance(head, Head):
        raise UserError(f"expected a jtln.heads.Head for head, but got {head!r}: choose a file with head=linear")
    return head


def _make_trunk(config: DictConfig, spec: PairSpec) -> Callable[[], Trunk]:
    settings = _trunk_settings(config)
    frozen = bool(config.trunk.get("freeze", False))
    if str(settings.get("_target_")).startswith("jtln.trunks."):
        check_weights(str(settings.get("weights", "none")))  # before images are read

    def make_trunk() -> Trunk:
        trunk: Trunk = instantiate(settings, image_size=spec.image_size)
        trunk.frozen = frozen
        return trunk

    if not frozen or config.pretrain.source:
        return make_trunk
    key = json.dumps([settings, weights_digest(str(settings.get("weights", "none"))), spec.image_size])
    return partial(shared_trunk, key, make_trunk)


def _views(config: DictConfig) -> int:
    views = _whole(config, "trunk.views", 1) if "views" in config.trunk else 1
    if views > MOST_VIEWS:
        raise UserError(f"expected trunk.views of at most {MOST_VIEWS}, but got {views}")
    return views


def _pretraining_depends(config: DictConfig) -> dict[str, Any]:
    return {
        "trunk": _trunk_settings(config),
        "weights": weights_digest(str(config.trunk.get("weights", "none"))),
        "optimizer": _plain(config.pretrain.get("optimizer") or OmegaConf.create()),
        "torchvision": version("torchvision"),  # whose default ImageNet weights may change
        "trainer": {key: value for key, value in config.trainer.items() if key != "progress_bar"},
    }


def _trunk_settings(config: DictConfig) -> dict[str, Any]:
    """Return the arguments of the network, without what is set about its training."""
    return {key: value for key, value in _plain(config.trunk).items() if key not in ("freeze", "views")}


def _plain(node: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(node, resolve=True)
    return values


def _budget(config: DictConfig) -> Budget:
    keys = ("epochs", "steps_per_epoch", "batch_size.source", "batch_size.target")
    return Budget(*(_whole(config, key, 1) for key in keys))


def _optimization(config: DictConfig) -> Optimization:
    return Optimization(_optimizer(config, "optimizer"), float(config.trunk_lr_factor), _schedule(config, "schedule"))


def _schedule(config: DictConfig, key: str) -> Schedule:
    schedule = instantiate(OmegaConf.select(config, key))
    if not isinstance(schedule, Schedule):
        raise UserError(f"expected a schedule for {key}, but got {schedule!r}: choose a file with {key}=cosine")
    return schedule


def _optimizer(config: DictConfig, key: str) -> Any:
    """Return a function from parameter groups to an optimizer, tried once: a wrong rate is an error now."""
    optimizer = instantiate(OmegaConf.select(config, key))
    momentum = OmegaConf.select(config, f"{key}.momentum")
    if momentum is not None and momentum >= 1:
        raise UserError(f"expected a number in [0, 1) for {key}.momentum, but got {momentum}")
    try:
        optimizer([Parameter(torch.zeros(1))])
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        given = _plain(OmegaConf.select(config, key))
        shown = ", ".join(f"{name}={value}" for name, value in given.items() if not name.startswith("_"))
        # Other errors than a ValueError are Python's own and name no setting.
        reason = f" ({str(error).splitlines()[0]})" if isinstance(error, ValueError) and str(error) else ""
        raise UserError(f"expected values that the optimizer takes in {key}, but got {shown}{reason}") from error
    return optimizer


def _num_workers(config: DictConfig) -> int | None:
    if isinstance(config.num_workers, str):
        if config.num_workers == "auto":
            return None
        raise UserError(f"expected auto or a whole number >= 0 for num_workers, but got {config.num_workers!r}")
    workers = _whole(config, "num_workers", 0)
    if workers > MOST_WORKERS:
        raise UserError(f"expected at most {MOST_WORKERS} processes for num_workers, but got {workers}")
    return workers


def _test_views(config: DictConfig, spec: PairSpec) -> str:
    if config.test_views not in VIEWS:
        raise unknown("test_views", config.test_views, VIEWS)
    if config.test_views == "ten_crop" and spec.stored_size == spec.image_size:
        raise UserError(
            f"expected images larger than the network's {spec.image_size} pixels for test_views=ten_crop, but got them "
            "of that size: set dataset.stored_size to a larger one where the dataset has it, or test_views=flip"
        )
    return str(config.test_views)


def _shrunk(config: DictConfig) -> DictConfig:
    """``debug=smoke``: a step or two of everything."""
    size = config.debug.batch_size
    small = {
        "epochs": 2,
        "steps_per_epoch": 1,
        "batch_size": {
            "source": min(size, config.batch_size.source),
            "target": min(size, config.batch_size.target),
        },
    }
    if config.pretrain.source:
        small["pretrain"] = {"epochs": 1, "steps_per_epoch": 1, "batch_size": size}
    weights, kind = str(config.trunk.get("weights")), str(config.trunk.get("_target_")).removeprefix("jtln.trunks.")
    of_torchvision = kind in ("alexnet", "from_torchvision")
    # Lite's are at hand; a timm model's other weights are files.
    fetched = is_fetched(weights) if of_torchvision else weights == "auto" and kind != "efficientnet_lite"
    if fetched:
        of_alexnet = kind == "alexnet"
        if of_torchvision and weights not in ("auto", "imagenet"):
            check_fetched("alexnet" if of_alexnet else str(config.trunk.name), weights)
        if of_alexnet and weights != "auto" and config.dataset.get("image_size", SMALLEST_FULL) < SMALLEST_FULL:
            instantiate(_trunk_settings(config), image_size=config.dataset.image_size)  # refuses what has no weights
        small["trunk"] = {"weights": "none"}
    return OmegaConf.merge(config, small)  # type: ignore[return-value]


def _pretraining(config: DictConfig) -> Pretraining:
    settings = config.pretrain
    passes = settings.steps_per_epoch == "auto"
    for key in ("epochs", "batch_size") if passes else ("epochs", "steps_per_epoch", "batch_size"):
        _whole(config, f"pretrain.{key}", 1)
    budget = Budget(settings.epochs, 1 if passes else settings.steps_per_epoch, settings.batch_size, 1)
    optimization = Optimization(_optimizer(config, "pretrain.optimizer"), 1.0, _schedule(config, "pretrain.schedule"))
    return Pretraining(budget, _seed(config, "pretrain.seed"), optimization, passes)


def _fits_source_head(config: DictConfig) -> bool:
    given = config.pretrain.get("source_head", False)
    if not isinstance(given, bool) or (given and config.pretrain.source):
        raise UserError(
            "expected pretrain.source_head to be true or false, and false where pre-training trains it "
            f"(pretrain.source=true), but got {given!r}: give pretrain=head"
        )
    return given


def _seed(config: DictConfig, key: str) -> int:
    seed = _whole(config, key, 0)
    if seed >= 2**32:  # NumPy's and Lightning's limit
        raise UserError(f"expected a whole number from 0 to {2**32 - 1} for {key}, but got {seed}")
    return seed


def _whole(config: DictConfig, key: str, least: int) -> int:
    return at_least(key, OmegaConf.select(config, key), least)


def _trainer(settings: DictConfig) -> TrainerSettings:
    options = _plain(settings)
    bar = bool(options.pop("progress_bar", True))
    if options.get("deterministic") not in (True, False, None, "warn"):
        raise UserError(f"expected true, false or warn for trainer.deterministic, but got {options['deterministic']!r}")
    if options.get("deterministic") is True:
        options["deterministic"] = "warn"  # the backward pass of AlexNet's adaptive pooling has no such form on a GPU
    devices = options.get("devices")
    if isinstance(devices, int) and not torch.cuda.is_available() and devices > (most := max(16, os.cpu_count() or 1)):
        raise UserError(f"expected at most {most} processes on this machine for trainer.devices, but got {devices}")
    with _named("trainer"):
        return TrainerSettings({str(key): value for key, value in options.items()}, bar)


def _cost_name(config: DictConfig, choices: DictConfig) -> str:
    """Return the group's choice with its metric, or with the cost that it wraps: "permuted wordnet (wup)"."""
    inner = choices.get("cost@cost.of")
    name = str(choices.cost) if inner is None else f"{choices.cost} {inner}"
    metric = OmegaConf.select(config, "cost.metric" if inner is None else "cost.of.metric")
    return name if metric is None else f"{name} ({metric})"


def _cache(config: DictConfig) -> Path:
    if config.cache is not None and not isinstance(config.cache, str):
        raise UserError(f"expected a folder for cache, but got {config.cache!r}")
    named = config.cache or os.environ.get("JTLN_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("jtln")
