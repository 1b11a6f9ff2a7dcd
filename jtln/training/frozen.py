"""Features of a trunk that training leaves as it is: computed once, so that a run trains heads alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jtln.data.feature_store import Compute, FeatureStore
from jtln.data.images import ImageSet
from jtln.data.loaders import PairData
from jtln.data.pairs import Pair, Task
from jtln.trunks import Trunk
from jtln.trunks.rebuild import trunk_digest

PARTS = ("train", "val", "test")


class ComputedFeatures(Trunk):
    """A stand-in for a trunk whose features are computed already: (B, D) -> (B, D)."""

    frozen = True

    def __init__(self, trunk: Trunk) -> None:
        super().__init__(nn.Identity(), trunk.name, trunk.dim, trunk.mean, trunk.std)
        self.pretrained, self.published = trunk.pretrained, trunk.published

    def forward(self, images: Tensor) -> Tensor:
        return images


def feature_data(
    data: PairData,
    trunk: Trunk,
    device: torch.device,
    *,
    cache: Path | None,
    views: int = 1,
    precision: str = "32-true",
    context: Any = None,
) -> PairData:
    """Return the same batches with features in place of images; what the cache does not have is computed.

    Args:
        data: of the images.
        trunk: on the device.
        device: computes the features.
        cache: the folder that runs share; None keeps nothing.
        views: of each training image that training draws from: itself, and ``views`` - 1 augmented ones.
        precision: of the forward pass, see :func:`feature_precision`. Features of two precisions, or of a CPU and a
            GPU, are kept apart.
        context: returns the context in which a forward pass runs; None: none.
    """
    trunk = trunk.eval()
    computed = precision if device.type == "cpu" else f"{precision} {device.type}"  # float32 on a GPU may mean TF32
    key = json.dumps([trunk.digest or trunk_digest(trunk), trunk.mean, trunk.std, data.pair.image_size, computed])
    context = context or torch.no_grad

    def stored(what: str, count: int, compute: Compute) -> Any:
        store = FeatureStore(cache, f"{key} {what}", (count, trunk.dim))
        return lambda images, draws=False: store.features(images, compute, draws, f"features of {trunk.name}")

    def plain(images: ImageSet) -> Iterator[Tensor]:
        for batch in data.pass_over(images, device, data.transform_eval):
            yield _features(trunk, batch, context)

    def seen(images: ImageSet) -> Iterator[Tensor]:
        for batch in data.pass_over(images, device, data.transform_eval, data.views):
            yield _features(trunk, batch, context)

    def augmented(images: ImageSet) -> Iterator[Tensor]:
        """Each image's views follow from the image alone, whatever stands beside it."""
        for index, digest in enumerate(images.digests()):
            pixels, _ = images.__getitems__([index])
            with torch.random.fork_rng():
                torch.manual_seed(int.from_bytes(hashlib.blake2b(digest.encode(), digest_size=6).digest(), "big"))
                drawn = data.transform_train(pixels.expand(views - 1, -1, -1, -1).contiguous().to(device))
            own = data.transform_eval(pixels.to(device))
            yield _features(trunk, torch.cat([own, drawn])[None], context)

    keep = stored("plain", 1, plain)
    pair = _mapped(data.pair, PARTS, keep)
    viewed = pair
    if data.views is not None:
        viewed = _mapped(data.pair, ("val", "test"), stored(data.views.kind, len(data.views), seen))
    training = pair
    if views > 1:
        keep_views = stored(f"{data.transform_train} {views}", views, augmented)
        training = _mapped(data.pair, ("train",), lambda images: keep_views(images, draws=True))
    return PairData(
        pair,
        data.steps_per_epoch,
        data.source_batch_size,
        data.target_batch_size,
        data.eval_batch_size,
        data.seed,
        num_workers=0,
        transform_train=nn.Identity(),
        transform_eval=nn.Identity(),
        augmented=training,
        viewed=viewed,
    )


def feature_precision(asked: str, device: torch.device) -> str:
    """Return the precision of a pass that computes features: that of the trainer, but float32 for emulated bfloat16.

    Args:
        asked: "32-true", "bf16-mixed" or "16-mixed".
        device: of the trunk.
    """
    return "32-true" if asked == "bf16-mixed" and not _has_bfloat16(device) else asked


def _has_bfloat16(device: torch.device) -> bool:
    """Return True if the device multiplies bfloat16 in hardware: elsewhere PyTorch emulates it, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    there: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return any(there.get(each) for each in ("avx512_bf16", "amx_bf16", "bf16"))


_shared: dict[str, Trunk] = {}  # the pre-trained trunk that the last run of this process left as it is


def shared_trunk(key: str, make: Callable[[], Trunk]) -> Trunk:
    """Return a trunk that no run changes: that of the last run in this process where it is the same one.

    What is drawn at random afterwards does not depend on whether the trunk is made.

    Args:
        key: a text of all that a pre-trained trunk depends on.
        make: makes it; one whose weights turn out to be random is of this run alone.
    """
    if key in _shared:
        return _shared[key]
    with torch.random.fork_rng(devices=[]):
        trunk = make()
    if trunk.pretrained:
        trunk.digest = trunk_digest(trunk)
        _shared.clear()
        _shared[key] = trunk
    return trunk


def _features(trunk: Trunk, views: Tensor, context: Any) -> Tensor:
    """Return the features of views (B, V, 3, H, W): (B, V, D) float32 on the CPU."""
    with torch.inference_mode(), _entered(context):
        rows = trunk(views.flatten(0, 1))
    return rows.float().unflatten(0, views.shape[:2]).cpu()


def _entered(context: Any) -> AbstractContextManager[Any]:
    entered: AbstractContextManager[Any] = context()
    return entered


def _mapped(pair: Pair, parts: tuple[str, ...], change: Any) -> Pair:
    """Return the pair with features in these parts of both tasks."""

    def mapped(task: Task) -> Task:
        return replace(task, **{part: change(getattr(task, part)) for part in parts})

    return replace(pair, source=mapped(pair.source), target=mapped(pair.target))
