"""The batches of a run: the order of the images, their distribution over processes, and the Lightning data module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from jtln.data.images import ImageSet
from jtln.data.pairs import Pair
from jtln.data.passes import cores
from jtln.data.transforms import ToFloat, Views
from jtln.distributed import process
from jtln.errors import UserError

Transform = Callable[[Tensor], Tensor]
Batch = TypeVar("Batch")

EVALUATED = ("target", "source")  # in the order of the evaluation loaders' indices
FEATURES_AT_ONCE = 64  # images in a batch of a pass that computes features
WATCHED = 1000  # approximate number of source validation images while the target is trained


class StreamSampler(Sampler[int]):
    """Indices for training: one endless stream of seeded shuffles, cut into epochs of ``steps`` batches.

    Epoch e continues the stream at position ``e * steps * batch_size``. So all images occur equally often (to within
    one) whatever the size of the set, and a resumed run continues where it stopped. No batch contains an image twice
    unless the set is smaller than the batch.

    Args:
        size: images in the set, > 0.
        batch_size: of the global batch, over all processes.
        steps: batches an epoch.
        seed: >= 0; the same in every process.
        rank, world_size: this process gets ``batch[rank::world_size]`` of every global batch.

    Raises:
        UserError: a number is out of range, or ``world_size`` does not divide ``batch_size``.
    """

    def __init__(self, size: int, batch_size: int, steps: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        for name, value in (("images", size), ("batch_size", batch_size), ("steps", steps)):
            if value < 1:
                raise UserError(f"expected {name} of 1 or more, but got {value}: set a larger one")
        if batch_size % world_size:
            nearest = max(batch_size // world_size, 1) * world_size
            raise UserError(
                f"expected a batch size that is a multiple of the {world_size} processes, but got {batch_size}: "
                f"set it to {nearest}, for instance"
            )
        self.size = size
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch, self._step = 0, 0
        self._round = 0
        self._order = self._shuffle(0)

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at ``epoch`` (Lightning calls this before every epoch)."""
        if epoch != self.epoch:
            self.epoch, self._step = epoch, 0

    def go_on(self, epoch: int, step: int) -> None:
        """Start the next iteration at batch ``step`` of ``epoch``."""
        self.epoch, self._step = epoch, step

    def __len__(self) -> int:
        return self.steps * self.batch_size // self.world_size

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.steps * self.batch_size
        for step in range(self._step, self.steps):
            batch: list[int] = []
            while len(batch) < self.batch_size:
                turn, offset = divmod(first + step * self.batch_size + len(batch), self.size)
                missing = self.batch_size - len(batch)
                batch.extend(self._order_of(turn)[offset : offset + missing].tolist())
            yield from batch[self.rank :: self.world_size]

    def _order_of(self, turn: int) -> np.ndarray:
        """Return the order (size,) of the set in its ``turn``-th pass."""
        if turn < self._round:
            self._round, self._order = 0, self._shuffle(0)
        while self._round < turn:
            self._round += 1
            order = self._shuffle(self._round)
            # The numbers of images of the earlier and of the later turn in the batch that spans both.
            before = self._round * self.size % self.batch_size
            after = self.batch_size - before
            if before and self.size >= self.batch_size:
                fresh = order[~np.isin(order, self._order[-before:])][:after]
                order = np.concatenate([fresh, order[~np.isin(order, fresh)]])
            self._order = order
        return self._order

    def _shuffle(self, turn: int) -> np.ndarray:
        return np.random.default_rng([self.seed, turn]).permutation(self.size)


class ShardSampler(Sampler[int]):
    """Indices for evaluation: this process's share ``rank::world_size``, without duplicates or omissions.

    Args:
        size: images in the set.
        rank, world_size: of this process.
        step: the stride through the set: one of so many consecutive images.
    """

    def __init__(self, size: int, rank: int = 0, world_size: int = 1, step: int = 1) -> None:
        self.indices = range(rank * step, size, world_size * step)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


class PairData(pl.LightningDataModule):
    """A pair's batches, for a Trainer with ``use_distributed_sampler=False``.

    A training batch is ``{"source": (images, labels), "target": (images, labels)}``, without "source" if it is not
    used; an evaluation batch is ``(images, labels)``, of the target (loader 0) and the source (loader 1). Images are
    the model's input after the transforms, which process a batch on the device; labels are (B,) int64.

    Args:
        pair: the data for training and evaluation.
        steps_per_epoch: training batches an epoch.
        source_batch_size, target_batch_size: of the global batches, over all processes.
        eval_batch_size: of one process.
        seed: of the training order, >= 0.
        num_workers: worker processes of each loader; None: none for a set in memory, and otherwise one for each core,
            up to 8, which the two training loaders share.
        transform_train, transform_eval: (B, C, H, W) uint8 -> (B, 3, H, W) float32; ``ToFloat()`` by default.
        views: several views of every validation and test image, (B, V, 3, H, W) after ``transform_eval``; None: the
            image itself, (B, 3, H, W).
        augmented: the pair of the training batches if it differs from ``pair``: features of augmented images.
        viewed: the pair for validation and test if it differs from ``pair``: features of several views.
        use_source, use_target: whether training reads these images. ``validate`` and ``test`` evaluate both tasks. The
            validation during training omits a source that training does not read, and uses about 1,000 images of a
            source that it reads beside the target.
        first_batch: the first training batch, counted over the epochs, for a resumed run.
    """

    def __init__(
        self,
        pair: Pair,
        steps_per_epoch: int,
        source_batch_size: int = 64,
        target_batch_size: int = 16,
        eval_batch_size: int = 256,
        seed: int = 0,
        num_workers: int | None = None,
        transform_train: Transform | None = None,
        transform_eval: Transform | None = None,
        views: Views | None = None,
        augmented: Pair | None = None,
        viewed: Pair | None = None,
        use_source: bool = True,
        use_target: bool = True,
        first_batch: int = 0,
    ) -> None:
        super().__init__()
        self.pair = pair
        self.steps_per_epoch = steps_per_epoch
        self.source_batch_size = source_batch_size
        self.target_batch_size = target_batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.transform_train = transform_train or ToFloat()
        self.transform_eval = transform_eval or ToFloat()
        self.views = views
        self.augmented, self.viewed = augmented or pair, viewed or pair
        self.use_source = use_source
        self.use_target = use_target
        self.first_batch = first_batch

    def train_dataloader(self) -> CombinedLoader:
        sets = {"source": self.augmented.source.train, "target": self.augmented.target.train}
        sizes = self._batch_sizes()
        return CombinedLoader({name: self._train_loader(sets[name], size) for name, size in sizes.items()}, "min_size")

    def val_dataloader(self) -> list[DataLoader[Any]]:
        if not len(self.pair.target.val):
            # Pre-training is validated on the source, whose loader is the second one.
            return [] if self.use_target else [[], self.val_dataloader_of("source")]  # type: ignore[list-item]
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return [self.val_dataloader_of(name) for name in self._evaluated]
        target = self.val_dataloader_of("target")
        if not self.use_source:
            return [target]
        return [target, self.val_dataloader_of("source", WATCHED if self.use_target else None)]

    def val_dataloader_of(self, side: str, at_most: int | None = None) -> DataLoader[Any]:
        """Return this process's share of one task's validation images, each once and in order.

        Args:
            side: "source" or "target".
            at_most: approximate number of images, over all processes, evenly spread over the set; None: all.
        """
        images = getattr(self.viewed, side).val
        return self._eval_loader(images, self.views, self._step(images, at_most))

    def test_dataloader(self) -> list[DataLoader[Any]]:
        return [self._eval_loader(getattr(self.viewed, name).test, self.views) for name in self._evaluated]

    @property
    def _evaluated(self) -> tuple[str, ...]:
        """The tasks with images, the target first."""
        return EVALUATED if len(self.pair.source.test) else EVALUATED[:1]

    def pass_over(
        self, images: ImageSet, device: torch.device | str, transform: Transform, views: Views | None = None
    ) -> Iterator[Tensor]:
        """Yield the images of any set as network input (B, V, 3, H, W), in order and in one process.

        Args:
            images: the set.
            device: of the transforms and the result.
            transform: (B, C, H, W) uint8 -> (B, 3, H, W) float32.
            views: several views of each; None: V = 1.
        """
        batch_size = max(1, FEATURES_AT_ONCE // (1 if views is None else len(views)))
        sampler = BatchSampler(ShardSampler(len(images)), batch_size, drop_last=False)
        for pixels, _ in self._loader(images, sampler, 1.0):
            pixels = pixels.to(device, non_blocking=True)
            seen = pixels[:, None] if views is None else views(pixels)  # (B, V, C, H, W)
            yield transform(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])

    def images_of(
        self, side: str, part: str = "train", at_most: int | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's share of a task's images, each once, as in evaluation: (B, 3, H, W), labels (B,).

        Args:
            side: "source" or "target".
            part: "train" or "val"; nothing is yielded for an empty part.
            at_most: approximate number of images, over all processes, evenly spread over the part; None: all.
            device: of the transforms and the result.
        """
        images = getattr(getattr(self.pair, side), part)
        if not len(images):
            return
        for pixels, labels in self._eval_loader(images, step=self._step(images, at_most)):
            yield self.transform_eval(pixels.to(device)), labels.to(device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Transform the images of a batch that is on its device already."""
        training = self.trainer is not None and self.trainer.training
        transform = self.transform_train if training else self.transform_eval
        if isinstance(batch, dict):
            return {name: (transform(images), labels) for name, (images, labels) in batch.items()}
        images, labels = batch
        if training or self.views is None:
            return transform(images), labels
        views = self.views(images)  # (B, V, C, H, W)
        return transform(views.flatten(0, 1)).unflatten(0, views.shape[:2]), labels

    def passes(self, total_steps: int) -> dict[str, float]:
        """Return the number of passes over each training set in ``total_steps`` training batches."""
        sets = {"source": self.pair.source.train, "target": self.pair.target.train}
        return {name: total_steps * size / len(sets[name]) for name, size in self._batch_sizes().items()}

    def _batch_sizes(self) -> dict[str, int]:
        sizes = {}
        if self.use_source:
            sizes["source"] = self._shareable("source", self.source_batch_size)
        if self.use_target:
            sizes["target"] = self._shareable("target", self.target_batch_size)
        return sizes

    def _shareable(self, side: str, size: int) -> int:
        """Return a batch size that is a multiple of the number of processes.

        Only a batch size equal to the size of the set is reduced; the remaining images come in other batches.
        """
        images, world_size = len(getattr(self.pair, side).train), self._process()[1]
        if images < world_size:
            raise UserError(
                f"expected at least one {side} training image for each of {world_size} processes, but got {images}: "
                "lower trainer.devices"
            )
        return size - size % world_size if size == images else size

    def _train_loader(self, images: ImageSet, batch_size: int) -> DataLoader[Any]:
        rank, world_size = self._process()
        sampler = StreamSampler(len(images), batch_size, self.steps_per_epoch, self.seed, rank, world_size)
        sampler.go_on(*divmod(self.first_batch, self.steps_per_epoch))
        share = batch_size / sum(self._batch_sizes().values())
        return self._loader(images, BatchSampler(sampler, batch_size // world_size, drop_last=False), share)

    def _eval_loader(self, images: ImageSet, views: Views | None = None, step: int = 1) -> DataLoader[Any]:
        rank, world_size = self._process()
        if len(images) < world_size:
            raise UserError(
                f"expected at least one image for each of {world_size} processes, but a part of the pair has "
                f"{len(images)}: lower trainer.devices"
            )
        sampler = ShardSampler(len(images), rank, world_size, step)
        batch_size = max(1, self.eval_batch_size // (1 if views is None else len(views)))
        return self._loader(images, BatchSampler(sampler, batch_size, drop_last=False), 0.5)

    def _loader(self, images: ImageSet, batches: BatchSampler, share: float) -> DataLoader[Any]:
        """Return a loader that uses ``share`` of the planned worker processes."""
        workers = self.num_workers
        if workers is None:
            devices = 1 if self.trainer is None else self.trainer.num_devices
            workers = 0 if images.in_memory else max(1, round(share * min(8, cores() // devices)))
        return _Loader(
            _Guarded(images),
            batch_sampler=batches,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # Else each pass would change the global random state, unlike a resumed run.
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )

    def _step(self, images: ImageSet, at_most: int | None) -> int:
        """Return the stride through the images for about ``at_most`` of them, and at least one for each process."""
        return 1 if at_most is None else max(1, min(-(-len(images) // at_most), len(images) // self._process()[1]))

    def _process(self) -> tuple[int, int]:
        """Return this process's rank and the number of processes."""
        return process() if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


class _Guarded(Dataset[Any]):
    """An image set that returns a UserError, such as a broken file, as a value.

    An error that a worker process raises would have that process's traceback in its message.
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor] | UserError:
        try:
            return self.images.__getitems__(indices)
        except UserError as error:
            return error


class _Loader(DataLoader[Any]):
    """A loader that raises the errors that _Guarded caught."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _as_it_is(batch: Batch) -> Batch:
    """Return the batch unchanged: an ImageSet's ``__getitems__`` has collated it."""
    return batch
