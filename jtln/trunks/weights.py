"""Sources of a trunk's weights: a library's download, or a file of any provenance."""

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
# Keys of containers of tensors; averaged weights come first, as in timm's loader.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", "module")
Adapt = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def weights_digest(weights: str) -> str:
    """Return a digest of the weights for a cache key: of a file's content, or the setting itself."""
    path = Path(weights).expanduser()
    return file_digest(path) if path.is_file() else weights


def is_fetched(weights: str) -> bool:
    """Return True if ``weights`` means a download: "auto", "imagenet", or a name such as "IMAGENET1K_V1"."""
    return weights in ("auto", "imagenet") or weights.startswith("IMAGENET1K_")


def check_weights(weights: str) -> None:
    """Raise a UserError if ``weights`` is neither "none", nor a download, nor an existing file."""
    if weights != "none" and not is_fetched(weights) and not Path(weights).expanduser().is_file():
        raise _no_file(weights)


def _no_file(weights: str) -> UserError:
    return UserError(
        f"expected trunk.weights to be auto, imagenet, none or a file (imagenet: for networks of torchvision), but "
        f"there is no file: trunk.weights={weights}"
    )


def with_weights(trunk: Trunk, weights: str, torchvision_name: str | None, match: str = "name") -> Trunk:
    """Load ``weights`` into the trunk; ``torchvision_name`` is None for a network without torchvision weights."""
    check_match(match)
    if weights == "auto":
        weights = "none" if torchvision_name is None else "imagenet"
    if weights == "none":
        return trunk
    if not is_fetched(weights):
        state = read_weights(Path(weights).expanduser())
    elif torchvision_name is None:
        raise UserError(
            f"expected trunk.weights=none or a file for {trunk.name}, but got {weights}: ImageNet weights exist only "
            "for images of 64 pixels and more (dataset.image_size)"
        )
    else:
        state = _fetch_imagenet(torchvision_name, "DEFAULT" if weights == "imagenet" else weights)
    load_trunk(trunk, state, weights, match)
    return trunk


def check_match(match: str) -> None:
    """Raise a UserError unless ``match`` is one of MATCHES."""
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
    """Load a trunk from a state dict, and store the state dict's classifier as ``trunk.published``.

    Args:
        trunk: receives the weights, in place.
        state: name -> tensor.
        origin: of the state dict, for messages.
        match: see :func:`load_weights`.
        adapt: likewise.
        head: the classifier's name; by default the only remaining linear layer with D inputs.

    Raises:
        UserError: a tensor of the trunk is missing or has another shape.
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
    """Raise a UserError if torchvision has the network, but not these weights of it."""
    if name not in torchvision.models.list_models(module=torchvision.models):
        return  # from_torchvision raises an error for an unknown network.
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
    """Return the tensors of a PyTorch (.pth) or .safetensors file. No code in it is executed.

    The tensors may be at the top level, or under one of CONTAINERS.

    Raises:
        UserError: there is no such file, or it contains no named tensors.
    """
    if not path.is_file():
        raise _no_file(str(path))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_inert(path)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns of old pickle protocols.
                content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(f"expected the package safetensors to read {path}: pip install 'jtln[timm]'") from error
    except Exception as error:  # A damaged file may raise any error.
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
        f"expected named tensors in {path}, at the top level or under {', '.join(CONTAINERS)}, but got {kind}: save "
        "the network's state_dict() instead"
    )


class _Inert(dict[Any, Any]):
    """A placeholder without behaviour for an object of a file that is neither a tensor nor a plain value."""

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


class _Items:
    """A placeholder for a dictionary of another type, because PyTorch restores items only into a plain one."""

    def __new__(cls, *_: Any) -> Any:
        return {}


def _inert(path: Path) -> list[Any]:
    """Return placeholders for the other objects of a checkpoint, such as parsed command-line arguments.

    PyTorch refuses a file with any such object. Their names are read without unpickling.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # The file has another format or is damaged, which torch.load reports.
        return []
    return [(type(name, (_Items if name.lower().endswith("dict") else _Inert,), {}), name) for name in names]


def _reason(error: Exception) -> str:
    """Return the reason why a file cannot be read, in one line."""
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        of = f" ({named[1]})" if named else ""
        return f"it contains more than tensors and plain values{of}, and code in a file is not executed"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _candidates(content: Any) -> Iterator[dict[Any, Any]]:
    """Yield the candidate state dicts: the content of known containers, and the whole content."""
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
    """Load a network without classifier from a state dict, and return the tensors that the network lacks.

    Names may have any prefix (``module.``, ``backbone.``, ``module.encoder_q.``, a run's ``trunk.body.``): the prefix
    under which most tensors fit is used.

    Args:
        network: receives the weights, in place.
        state: name -> tensor.
        name: of the network, for messages.
        origin: of the state dict, for messages.
        match: "name"; or "order", which assigns tensors in their order, for a file with other names.
        adapt: converts the tensors of other releases to the network's names and shapes, if they do not fit.

    Raises:
        UserError: a tensor of the network is missing or has another shape.
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
        hint = "" if match == "order" else "; trunk.match=order matches by order and shape"
        raise UserError(
            f"expected the weights of {name} in {origin}, but {len(wanted) - len(wrong)} of its {len(wanted)} tensors "
            f"fit; the first that does not is '{first}' of shape {tuple(wanted[first].shape)}, and the file has {got}: "
            f"choose the network of the file{hint}"
        )
    network.load_state_dict(found)
    return left


def _wrong(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    return [name for name, value in wanted.items() if name not in found or found[name].shape != value.shape]


def _by_name(wanted: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors under the prefix with most matches, and the other tensors of that prefix."""
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
    """Return the tensors in their order, and the remaining ones.

    The network keeps its own counters of batch norms, which old files lack.
    """
    there = [(name, value) for name, value in state.items() if not name.endswith("num_batches_tracked")]
    found = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    names = [name for name in wanted if name not in found]
    found |= {name: value for name, (_, value) in zip(names, there, strict=False)}
    return {name: found[name] for name in wanted if name in found}, dict(there[len(names) :])
