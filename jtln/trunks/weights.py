"""Sources of a trunk's weights: a library's own download, or a file of any provenance."""

from __future__ import annotations

import pickle
import re
import urllib.error
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from jtln.errors import UserError, unknown
from jtln.storage import file_digest
from jtln.trunks.base import PublishedHead, Trunk

MATCHES = ("name", "order")
# Keys that hold the tensors; an average of the weights comes first, as in timm's own loader.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", "module")
Adapt = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def weights_digest(weights: str) -> str:
    """Return what the weights setting stands for, for a cache's key: a file's content, or the setting itself."""
    path = Path(weights).expanduser()
    return file_digest(path) if path.is_file() else weights


def is_fetched(weights: str) -> bool:
    """Return True if ``weights`` means a download: "auto", "imagenet", or a name such as "IMAGENET1K_V1"."""
    return weights in ("auto", "imagenet") or weights.startswith("IMAGENET1K_")


def check_weights(weights: str) -> None:
    """Raise a UserError where ``weights`` is neither "none", a download nor a file that is there."""
    if weights != "none" and not is_fetched(weights) and not Path(weights).expanduser().is_file():
        raise _no_file(weights)


def _no_file(weights: str) -> UserError:
    return UserError(
        f"expected trunk.weights to be auto, none, a file, or imagenet for a network of torchvision's, but there is no "
        f"file: trunk.weights={weights}"
    )


def with_weights(trunk: Trunk, weights: str, torchvision_name: str | None, match: str = "name") -> Trunk:
    """Load what ``weights`` names into the trunk; ``torchvision_name`` is None where torchvision has none for it."""
    check_match(match)
    if weights == "auto":
        weights = "none" if torchvision_name is None else "imagenet"
    if weights == "none":
        return trunk
    if not is_fetched(weights):
        state = read_weights(Path(weights).expanduser())
    elif torchvision_name is None:
        raise UserError(
            f"expected trunk.weights=none or a file for {trunk.name}, but got {weights}: there are ImageNet weights "
            "only for images of 64 pixels and more (dataset.image_size)"
        )
    else:
        state = _fetch_imagenet(torchvision_name, "DEFAULT" if weights == "imagenet" else weights)
    load_trunk(trunk, state, weights, match)
    return trunk


def check_match(match: str) -> None:
    """Raise a UserError unless ``match`` is a way to match tensors, also where there is nothing to match."""
    if match not in MATCHES:
        raise unknown("trunk.match", match, MATCHES)


def load_trunk(
    trunk: Trunk,
    state: dict[str, Tensor],
    origin: str,
    match: str = "name",
    head: str = "",
    adapt: Adapt | None = None,
) -> None:
    """Load a trunk from a state dict, and keep the classifier that this has as ``trunk.published``.

    Args:
        trunk: gets the weights, in place.
        state: name -> tensor.
        origin: where the state dict comes from, for messages.
        match: see :func:`load_weights`.
        adapt: likewise.
        head: the classifier's name; by default it is the only linear layer of D inputs that the trunk leaves over.

    Raises:
        UserError: a tensor of the trunk is not there or has another shape.
    """
    left = load_weights(trunk.body, state, trunk.name, origin, match, adapt)
    trunk.pretrained, trunk.published = True, _published(left, trunk.dim, head)


def _published(left: dict[str, Tensor], dim: int, head: str) -> PublishedHead | None:
    found = {}
    for name, weight in left.items():
        bias = left.get(f"{name.removesuffix('weight')}bias")
        fits = weight.ndim == 2 and weight.shape[1] == dim and bias is not None and bias.shape == weight.shape[:1]
        if name.endswith("weight") and fits and bias is not None:
            found[name.removesuffix("weight").rstrip(".")] = PublishedHead(weight.float(), bias.float())
    return found.get(head) or (next(iter(found.values())) if len(found) == 1 else None)


def check_fetched(name: str, which: str) -> None:
    """Raise a UserError unless torchvision has such weights of a network that it has."""
    if name not in torchvision.models.list_models(module=torchvision.models):
        return  # which is said when the network is made
    there = torchvision.models.get_model_weights(name).__members__
    if which not in there:
        raise unknown(f"weights of {name} for trunk.weights", which, ["imagenet", *there])


def _fetch_imagenet(name: str, which: str) -> dict[str, Any]:
    there = torchvision.models.get_model_weights(name).__members__
    if which != "DEFAULT":
        check_fetched(name, which)
    try:
        return there[which].get_state_dict(check_hash=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"the ImageNet weights of {name} could not be fetched ({error}): give a file with trunk.weights=FILE, "
            "start from a random trunk with trunk.weights=none, or train it on the source set first with "
            "trunk.weights=none pretrain=source"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file: .pth and the like, or .safetensors. Nothing in it is executed.

    The tensors may be bare, or under one of CONTAINERS.

    Raises:
        UserError: there is no such file, or it holds no tensors by name.
    """
    if not path.is_file():
        raise _no_file(str(path))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_inert(path)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle protocols
                content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(f"expected the package safetensors to read {path}: pip install 'jtln[timm]'") from error
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise UserError(
            f"expected a PyTorch state dict or checkpoint in {path}, but it cannot be read: {_reason(error)}"
        ) from error
    for state in _candidates(content):
        tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    kind = type(content).__name__
    if isinstance(content, dict) and not isinstance(content, _Inert):
        kind = f"a dict of {', '.join(map(str, list(content)[:5]))}"
    raise UserError(
        f"expected tensors by name in {path}, bare or under {', '.join(CONTAINERS)}, but got {kind}: save the "
        "network's state_dict() in its place"
    )


class _Inert(dict[Any, Any]):
    """Stands for an object of a file that is neither a tensor nor a plain value: takes anything, and does nothing."""

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


class _Items:
    """Stands for a dictionary of another type, whose items PyTorch puts into a plain one alone."""

    def __new__(cls, *_: Any) -> Any:
        return {}


def _inert(path: Path) -> list[Any]:
    """Return stand-ins for what a checkpoint holds beside its weights, such as its command line's arguments.

    PyTorch refuses a whole file for one of these. Their names are read without unpickling anything.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of another format, or damaged, which torch.load finds as well
        return []
    return [(type(name, (_Items if name.lower().endswith("dict") else _Inert,), {}), name) for name in names]


def _reason(error: Exception) -> str:
    """Return what is wrong with a file, in one line."""
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        of = f" ({named[1]})" if named else ""
        return f"it holds more than tensors and plain values{of}, and nothing in a file is executed"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _candidates(content: Any) -> Iterator[dict[Any, Any]]:
    """Yield the possible state dicts: the content of known containers, and the whole content."""
    if isinstance(content, dict):
        for key in CONTAINERS:
            if isinstance(content.get(key), dict):
                yield from _candidates(content[key])
        yield content


def load_weights(
    network: nn.Module,
    state: dict[str, Tensor],
    name: str,
    origin: str,
    match: str = "name",
    adapt: Adapt | None = None,
) -> dict[str, Tensor]:
    """Load a network without classifier from a state dict, and return the tensors that the network does not have.

    Names may have any prefix in front (``module.``, ``backbone.``, ``module.encoder_q.``, a run's ``trunk.body.``): the
    one under which most tensors fit is taken.

    Args:
        network: gets the weights, in place.
        state: name -> tensor.
        name: of the network, for messages.
        origin: where the state dict comes from, for messages.
        match: "name"; or "order", which takes tensors one after another, for a file of other names.
        adapt: brings the tensors of other releases of the network to its names and shapes; for those that do not fit.

    Raises:
        UserError: a tensor of the network is not there or has another shape.
    """
    check_match(match)
    wanted = network.state_dict()
    found, left = _by_order(wanted, state) if match == "order" else _by_name(wanted, state)
    wrong = _wrong(wanted, found)
    if wrong and adapt is not None and match == "name":
        adapted = _by_name(wanted, adapt({**found, **left}))
        if not _wrong(wanted, adapted[0]):
            (found, left), wrong = adapted, []
    if wrong:
        first = wrong[0]
        got = f"shape {tuple(found[first].shape)}" if first in found else "none of that name"
        hint = "" if match == "order" else "; trunk.match=order goes by order and shape"
        raise UserError(
            f"expected the weights of {name} in {origin}, but {len(wanted) - len(wrong)} of its {len(wanted)} tensors "
            f"fit; the first that does not is '{first}' of shape {tuple(wanted[first].shape)}, and the file has {got}: "
            f"choose the network that the file was made with{hint}"
        )
    network.load_state_dict(found)
    return left


def _wrong(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    return [name for name, value in wanted.items() if name not in found or found[name].shape != value.shape]


def _by_name(wanted: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of the prefix under which most names and shapes fit, and the others of that prefix."""
    fits: Counter[str] = Counter()
    for name, value in wanted.items():
        for key in _ending_in(state, name):
            fits[key[: len(key) - len(name)]] += 1 + 1000 * (state[key].shape == value.shape)
    prefix = max(fits, key=lambda each: (fits[each], -len(each)), default="")
    found = {name: state[prefix + name] for name in wanted if prefix + name in state}
    others = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return found, {key: value for key, value in others.items() if key not in wanted}


def _ending_in(state: dict[str, Tensor], name: str) -> Iterator[str]:
    return (key for key in state if key == name or key.endswith(f".{name}"))


def _by_order(wanted: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors one after another, and those after the last one.

    Counters of batch norms, which old files lack, are taken as they are.
    """
    there = [(name, value) for name, value in state.items() if not name.endswith("num_batches_tracked")]
    found = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    names = [name for name in wanted if name not in found]
    found |= {name: value for name, (_, value) in zip(names, there, strict=False)}
    return {name: found[name] for name in wanted if name in found}, dict(there[len(names) :])
