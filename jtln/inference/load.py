"""Loading of a run's checkpoint as a classifier."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jtln.data.files import Reader
from jtln.data.transforms import Views
from jtln.errors import UserError, unknown
from jtln.heads import Cosine, Discriminant, FreeLunch, Head, Linear, Logistic
from jtln.inference.classifier import KEY, Classifier, Description, Informed
from jtln.module import not_finite
from jtln.storage import read_torch
from jtln.transport import TransportedPrior
from jtln.trunks.rebuild import TRUNKS, trunk_weights
from jtln.trunks.weights import is_fetched

TASKS = ("target", "source")
MODULE = "jtln.trunks.from_module"  # imports the user's own network from a path
_HYDRAS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")  # Hydra's keys, which are no arguments
HEADS: dict[str, Callable[..., Head]] = {
    f"{kind.__module__}.{kind.__qualname__}": kind for kind in (Linear, Cosine, Discriminant, FreeLunch, Logistic)
}


def load(run: str | Path, head: str = "target", views: str | None = None, trust: bool = False) -> Classifier:
    """Return the network of a run's best checkpoint, on the CPU.

    Args:
        run: its folder, or a ``best.ckpt`` from one.
        head: "target" or "source".
        views: "none", "flip" or "ten_crop"; None: those of the run's test.
        trust: whether code of other packages that the checkpoint names may run, such as your own trunk or head.

    Raises:
        UserError: there is no such checkpoint, it is not one of this package, it names code that is not trusted, or its
            trunk cannot be made again.
    """
    if head not in TASKS:
        raise unknown("head", head, TASKS)
    path = checkpoint_of(run)
    try:
        checkpoint = read_torch(path)
        state, description = checkpoint["state_dict"], Description(**checkpoint["hyper_parameters"][KEY])
    except OSError:
        raise
    except Exception as error:
        raise UserError(
            f"expected a checkpoint of a run, with a description of its network, in {path}, but it cannot be read as "
            f"one ({type(error).__name__}): give a run of this version of jtln"
        ) from error
    if (name := not_finite(state) or not_finite((checkpoint.get("head") or {}).get("state", {}))) is not None:
        raise UserError(f"expected finite weights in {path}, but {name} is not: the training diverged")
    if not description.trunk:
        raise UserError(
            f"expected the trunk's configuration in {path}, but its trunk was made in Python: load it there"
        )
    kind = str(description.trunk.get("_target_", ""))
    settings = {key: value for key, value in description.trunk.items() if key != "_target_"}
    make_trunk = _trusted(kind, TRUNKS, "trunk", path, trust, settings)
    fitted = checkpoint.get("head") if head == "target" else None
    make_head = None if fitted is None else _trusted(fitted["kind"], HEADS, "head", path, trust, fitted["settings"])
    classes = getattr(description, head)
    try:
        for key in ("freeze", "views"):
            settings.pop(key, None)
        if kind in (*TRUNKS, MODULE):  # The checkpoint contains the weights.
            settings["weights"] = "none"
        trunk = make_trunk(image_size=description.image_size, **settings)
        if hasattr(getattr(trunk, "body", None), "transform_input"):  # depends on the weights training started from
            trunk.body.transform_input = is_fetched(str(description.trunk.get("weights")))
        trunk.load_state_dict(trunk_weights(checkpoint, description.trunk, description.image_size))
        classifier: nn.Module = nn.Linear(trunk.dim, len(classes))
        prefix = f"{head}_head."
        weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if make_head is not None and fitted is not None:
            classifier, weights = make_head(**fitted["settings"]).classifier(trunk.dim, len(classes)), fitted["state"]
        classifier.load_state_dict(weights)
        if head == "target" and "prior.rows" in state:
            classifier = Informed(classifier, *_prior(state), description.source)
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            f"expected to make the network of {path} again, trunk {kind}, but got: {reason}. Your own files have to be "
            "in this folder or installed, as they were in training"
        ) from error
    reader = Reader(description.stored_size, description.fit, description.channels, description.white)
    return Classifier(trunk, classifier, classes, reader, Views(views or description.views, description.image_size))


def _prior(state: dict[str, torch.Tensor]) -> tuple[nn.Linear, TransportedPrior]:
    """Return the source head and the prior of a checkpoint."""
    weight, rows = state["source_head.weight"], state["prior.rows"]
    source_head, prior = nn.Linear(weight.shape[1], weight.shape[0]), TransportedPrior(rows)
    source_head.load_state_dict({"weight": weight, "bias": state["source_head.bias"]})
    prior.load_state_dict({name: state[f"prior.{name}"] for name in ("rows", "alpha", "temperature")})
    return source_head, prior


def _trusted(
    kind: str, known: dict[str, Callable[..., Any]], what: str, path: Path, trust: bool, settings: dict[str, Any]
) -> Callable[..., Any]:
    """Return the constructor of ``kind``; without ``trust`` no code of other packages runs."""
    foreign = [*([] if kind in known else [kind]), *_named_code(settings)]
    foreign += [str(settings.get("path"))] if kind == MODULE else []
    if not foreign:
        return known[kind]
    if not trust:
        raise UserError(
            f"expected a {what} of this package in {path}, but it names {', '.join(foreign)}, which loading would run: "
            "give --trust (trust=True in Python) if you trust the file's author"
        )
    try:
        found = {name: _imported(name) for name in (kind, *foreign)}
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"expected the {what} {kind} of {path} in this folder or installed, as it was in training, but got: {error}"
        ) from error
    return lambda **settings: found[kind](**{name: _made(value) for name, value in settings.items()})


def _named_code(value: Any) -> list[str]:
    """Return the names of all callables in a value of a configuration, at any depth."""
    if isinstance(value, dict):
        inner = [name for each in value.values() for name in _named_code(each)]
        return [str(value["_target_"]), *inner] if "_target_" in value else inner
    return [name for each in value for name in _named_code(each)] if isinstance(value, list | tuple) else []


def _made(value: Any) -> Any:
    """Instantiate a value of a trusted configuration, as Hydra did in training."""
    if isinstance(value, list | tuple):
        return [_made(each) for each in value]
    if not isinstance(value, dict):
        return value
    made = {key: _made(each) for key, each in value.items()}
    if "_target_" not in made:
        return made
    settings = {key: each for key, each in made.items() if key not in _HYDRAS}
    call = partial(_imported(made["_target_"]), *made.get("_args_", ()), **settings)
    return call if made.get("_partial_") else call()


def _imported(name: str) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    return found


def checkpoint_of(run: str | Path) -> Path:
    """Return the path of a checkpoint: ``run`` itself, or the best one of a run folder."""
    if not str(run).strip():
        raise UserError("expected a run's folder or checkpoint, but got an empty name")
    path = Path(run).expanduser()
    if path.is_file():
        return path
    best = path / "checkpoints" / "best.ckpt"
    if best.is_file():
        return best
    if not path.exists():
        raise UserError(f"expected a run's folder or checkpoint, but there is no {path}")
    raise UserError(f"expected a run's folder, but there is no {best}: give the folder that train.py printed last")
