from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import BatchSampler
from torchvision.transforms.v2 import functional as v2

from jtln.cli.user_errors import explain
from jtln.data.files import BadImage
from jtln.data.images import ArrayImages
from jtln.data.loaders import PairData, ShardSampler, StreamSampler
from jtln.data.pairs import Pair, Task
from jtln.data.transforms import VIEWS, ToFloat, Views
from jtln.errors import UserError
from jtln.methods import Method
from jtln.module import JTLN
from jtln.names.class_set import ClassSet
from jtln.training.trainer import Budget, pair_data


def numbered(count: int, classes: int, side: str) -> ArrayImages:
    """Images whose every pixel is the image's number."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 4, 4)
    return ArrayImages(images, torch.arange(count) % classes, [f"{side}/{i}" for i in range(count)])


@pytest.fixture
def pair() -> Pair:
    def task(sizes: tuple[int, int, int], names: str) -> Task:
        return Task(ClassSet(tuple(names)), *(numbered(size, len(names), names) for size in sizes))

    return Pair("numbers", task((50, 9, 11), "abcde"), task((7, 5, 13), "xyz"), image_size=4)


def epochs(sampler: StreamSampler, count: int) -> list[int]:
    indices = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        indices += list(sampler)
    return indices


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (10, 10), (7, 4), (50, 1), (40, 16), (17, 16), (100, 64)])
def test_stream_goes_through_the_set_again_and_again(size: int, batch: int) -> None:
    sampler = StreamSampler(size, batch, steps=5, seed=0)
    assert len(sampler) == 5 * batch
    stream = epochs(sampler, 20)
    assert len(stream) == 20 * 5 * batch
    for start in range(0, len(stream) - size + 1, size):  # every turn is a permutation
        assert sorted(stream[start : start + size]) == list(range(size))
    for start in range(0, len(stream), batch):
        assert len(set(stream[start : start + batch])) == batch
    if size > 4:
        assert stream[:size] != stream[size : 2 * size]


def test_a_set_smaller_than_the_batch() -> None:
    stream = epochs(StreamSampler(3, 8, steps=3, seed=0), 2)
    counts = torch.tensor(stream).bincount()
    assert counts.sum() == 48
    assert counts.tolist() == [16, 16, 16]


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_global_batches(world_size: int) -> None:
    whole = BatchSampler(StreamSampler(30, 8, 6, seed=2), 8, drop_last=False)
    shares = [
        BatchSampler(StreamSampler(30, 8, 6, seed=2, rank=rank, world_size=world_size), 8 // world_size, False)
        for rank in range(world_size)
    ]
    for epoch in range(3):
        for batches in (whole, *shares):
            batches.sampler.set_epoch(epoch)
        for batch, *parts in zip(whole, *shares, strict=True):
            assert sorted(batch) == sorted(index for part in parts for index in part)
            assert batch[::world_size] == parts[0]


def test_a_resumed_run_goes_on_in_the_same_order() -> None:
    sampler = StreamSampler(13, 4, steps=5, seed=1)
    full = epochs(sampler, 6)
    resumed = StreamSampler(13, 4, steps=5, seed=1)
    resumed.set_epoch(4)
    assert list(resumed) == full[80:100]
    sampler.set_epoch(1)  # and backwards
    assert list(sampler) == full[20:40]
    assert epochs(StreamSampler(13, 4, steps=5, seed=2), 6) != full


def test_senseless_samplers() -> None:
    with pytest.raises(UserError, match=r"3 processes.*16.*15"):
        StreamSampler(10, 16, 1, seed=0, world_size=3)
    with pytest.raises(UserError, match=r"images.*got 0"):
        StreamSampler(0, 16, 1, seed=0)
    with pytest.raises(UserError, match=r"steps.*got 0"):
        StreamSampler(5, 16, 0, seed=0)


@pytest.mark.parametrize("size", [0, 1, 10, 11])
def test_shards_cover_everything_once(size: int) -> None:
    shards = [ShardSampler(size, rank, 3) for rank in range(3)]
    assert sorted(index for shard in shards for index in shard) == list(range(size))
    assert sum(map(len, shards)) == size


class Watcher(pl.LightningModule):
    """Records the batches that come, and trains one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen["train"].append({side: images[:, 0, 0, 0].tolist() for side, (images, _) in batch.items()})
        return self.weight * sum(images.mean() for images, _ in batch.values())

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen["val"].append((dataloader_idx, batch[0].dtype, batch[0].shape, batch[1].tolist()))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen["test"].append((dataloader_idx, batch[0].dtype, batch[0].shape, batch[1].tolist()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train_transform(images: torch.Tensor) -> torch.Tensor:
    return images.float().expand(-1, 3, -1, -1)


def trainer(tmp_path: Path, epochs: int) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=1,
    )


def data(pair: Pair, **settings: Any) -> PairData:
    settings = {"steps_per_epoch": 3, "source_batch_size": 8, "target_batch_size": 4, "seed": 5} | settings
    return PairData(pair, transform_train=train_transform, **settings)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_with_lightning(pair: Pair, tmp_path: Path, workers: int) -> None:
    model = Watcher()
    trainer(tmp_path, epochs=4).fit(model, data(pair, num_workers=workers))
    for side, size, count in (("source", 8, 50), ("target", 4, 7)):
        expected = epochs(StreamSampler(count, size, steps=3, seed=5), 4)
        got = [number for batch in model.seen["train"] for number in batch[side]]
        assert got == expected
    index, dtype, shape, labels = model.seen["val"][0]  # the sanity check: transformed as for evaluation
    assert (index, dtype, shape) == (0, torch.float32, (5, 3, 4, 4))
    assert labels == pair.target.val.labels.tolist()


def test_evaluation_reads_target_then_source(pair: Pair, tmp_path: Path) -> None:
    model = Watcher()
    trainer(tmp_path, epochs=1).test(model, data(pair, eval_batch_size=6), verbose=False)
    labels: dict[int, list[int]] = {0: [], 1: []}
    for index, dtype, shape, batch in model.seen["test"]:
        assert dtype == torch.float32
        assert shape[1:] == (3, 4, 4)
        labels[index] += batch
    assert labels == {0: pair.target.test.labels.tolist(), 1: pair.source.test.labels.tolist()}


def test_training_without_the_source(pair: Pair, tmp_path: Path) -> None:
    model = Watcher()
    only = data(pair, use_source=False)
    trainer(tmp_path, epochs=1).fit(model, only)
    assert [list(batch) for batch in model.seen["train"]] == [["target"]] * 3
    assert only.passes(14) == {"target": 8.0}
    assert {index for index, *_ in model.seen["val"]} == {0}  # nothing changes there meanwhile, or nobody asks
    trainer(tmp_path, epochs=1).validate(model, only, verbose=False)
    assert {index for index, *_ in model.seen["val"]} == {0, 1}


def test_training_without_the_target(pair: Pair, tmp_path: Path) -> None:
    model = Watcher()
    only = data(pair, use_target=False)
    trainer(tmp_path, epochs=1).fit(model, only)
    assert [list(batch) for batch in model.seen["train"]] == [["source"]] * 3
    assert only.passes(25) == {"source": 4.0}


@pytest.mark.parametrize("use_target", [True, False])
def test_of_many_source_images_a_few_validate_while_the_target_is_trained(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_target: bool
) -> None:
    monkeypatch.setattr("jtln.data.loaders.WATCHED", 2)
    every = pair.source.val.labels.tolist()
    step = -(-len(every) // 2)
    assert step > 1
    model, both = Watcher(), data(pair, use_target=use_target)
    trainer(tmp_path, epochs=1).fit(model, both)
    seen = {index: labels for index, _, _, labels in model.seen["val"]}
    assert seen == {0: pair.target.val.labels.tolist(), 1: every[::step] if use_target else every}
    model.seen["val"].clear()
    trainer(tmp_path, epochs=1).validate(model, both, verbose=False)
    assert [labels for index, _, _, labels in model.seen["val"] if index == 1] == [every]


@pytest.mark.parametrize("part", ["train", "val"])
def test_images_of_a_part_come_once_each_as_the_evaluation_sees_them(pair: Pair, part: str) -> None:
    module = data(pair, eval_batch_size=6, views=Views("flip", 4))
    for side in ("source", "target"):
        expected = getattr(getattr(pair, side), part)
        images, labels = (torch.cat(parts) for parts in zip(*module.images_of(side, part), strict=True))
        assert torch.equal(images, ToFloat()(expected.images))
        assert torch.equal(labels, expected.labels)


@pytest.mark.parametrize(("at_most", "step"), [(None, 1), (1000, 1), (4, 2), (2, 4), (1, 7)])
def test_fewer_images_of_a_part_are_spread_over_it(pair: Pair, at_most: int | None, step: int) -> None:
    assert len(pair.target.train) == 7
    batches = data(pair, eval_batch_size=2).images_of("target", at_most=at_most)
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(labels, pair.target.train.labels[::step])


@pytest.mark.parametrize("at_most", [None, 6])
def test_processes_share_the_images_of_a_part(pair: Pair, at_most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.cat([labels for _, labels in data(pair).images_of("source", at_most=at_most)])
    shares = []
    for rank in range(3):
        module = data(pair)
        monkeypatch.setattr(module, "_process", lambda rank=rank: (rank, 3))
        shares.append(torch.cat([labels for _, labels in module.images_of("source", at_most=at_most)]))
    together = torch.full_like(whole, -1)
    for rank, share in enumerate(shares):
        together[rank::3] = share
    assert torch.equal(together, whole)


def test_passes(pair: Pair) -> None:
    assert data(pair).passes(25) == {"source": 4.0, "target": pytest.approx(100 / 7)}


def test_a_batch_of_all_images_is_made_one_that_processes_can_share(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7 target images: all of them are a batch of 7, of which three processes share 6."""
    module = data(pair, source_batch_size=12, target_batch_size=7)
    monkeypatch.setattr(module, "_process", lambda: (0, 3))
    (batch, _, _), *_ = iter(module.train_dataloader())
    assert (len(batch["source"][1]), len(batch["target"][1])) == (4, 2)
    module.target_batch_size = 4  # the user's own number is not changed
    with pytest.raises(UserError, match=r"got 4.* 3"):
        module.train_dataloader()
    monkeypatch.setattr(module, "_process", lambda: (0, 8))
    with pytest.raises(UserError, match=r"target.* 8 processes.* 7.*trainer\.devices"):
        module.train_dataloader()


def test_an_unattached_module_gives_loaders(pair: Pair) -> None:
    module = data(pair)
    batches = [batch for batch, _, _ in iter(module.train_dataloader())]
    assert len(batches) == 3
    assert batches[0]["source"][0].dtype == torch.uint8
    assert batches[0]["target"][0].shape == (4, 1, 4, 4)
    images, labels = module.on_after_batch_transfer(batches[0]["target"], 0)
    assert images.shape == (4, 3, 4, 4)
    assert torch.equal(labels, batches[0]["target"][1])


class OnDisk(ArrayImages):
    """Behaves as a set that reads files; one image may be broken."""

    in_memory = False
    broken = -1

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.broken in indices:
            raise BadImage("pictures/3.jpg", "the file is empty")
        return super().__getitems__(indices)


def on_disk(pair: Pair) -> Pair:
    def slow(images: ArrayImages) -> OnDisk:
        return OnDisk(images.images, images.labels, images.names)

    tasks = [
        Task(task.classes, *(slow(part) for part in (task.train, task.val, task.test)))
        for task in (pair.source, pair.target)
    ]
    return Pair("numbers", *tasks, image_size=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_one_message(
    pair: Pair, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's exception would come with the worker's traceback."""
    monkeypatch.setattr(OnDisk, "broken", 3)
    with pytest.raises(BadImage) as caught:
        trainer(tmp_path, epochs=9).fit(Watcher(), data(on_disk(pair), num_workers=workers))
    message = str(BadImage("pictures/3.jpg", "the file is empty"))
    assert explain(caught.value, []) == message
    assert "Traceback" not in message
    with pytest.raises(BadImage, match=r"pictures/3\.jpg"):
        list(data(on_disk(pair), num_workers=workers).images_of("target"))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("available", "expected"),
    [(1, (1, 1, 1)), (4, (3, 1, 2)), (6, (4, 2, 3)), (64, (5, 3, 4))],
)
def test_processes_by_the_cores(
    pair: Pair, available: int, expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training loaders share them by their batches, 8 and 4 images; validation is read one task after the other."""
    monkeypatch.setattr("jtln.data.loaders.cores", lambda: available)
    memory, files = data(pair), data(on_disk(pair))
    assert [loader.num_workers for loader in memory.train_dataloader().flattened] == [0, 0]
    source, target = files.train_dataloader().flattened
    assert (source.num_workers, target.num_workers, files.val_dataloader()[0].num_workers) == expected
    assert source.persistent_workers
    assert [loader.num_workers for loader in data(pair, num_workers=2).train_dataloader().flattened] == [2, 2]
    (alone,) = data(on_disk(pair), use_target=False).train_dataloader().flattened
    assert alone.num_workers == min(8, available)


def test_views_are_for_validation_and_test(pair: Pair, tmp_path: Path) -> None:
    model = Watcher()
    several = data(pair, views=Views("ten_crop", 3), eval_batch_size=40)
    trainer(tmp_path, epochs=1).fit(model, several)
    trainer(tmp_path, epochs=1).test(model, several, verbose=False)
    for split in ("val", "test"):
        assert {shape[1:] for _, _, shape, _ in model.seen[split]} == {(10, 3, 3, 3)}
        assert all(shape[0] == len(labels) <= 4 for _, _, shape, labels in model.seen[split])
    tested = [label for index, _, _, labels in model.seen["test"] for label in labels if index == 0]
    assert tested == pair.target.test.labels.tolist()
    assert all(len(batch["source"]) == 8 for batch in model.seen["train"])
    assert next(several.images_of("target"))[0].shape[1:] == (3, 4, 4)


@pytest.mark.parametrize("kind", VIEWS)
def test_probabilities_are_averaged_over_views(tmp_path: Path, make_trunk: Any, kind: str) -> None:
    """The mean prediction and its accuracy by hand, on images larger than the network's."""
    generator = torch.Generator().manual_seed(0)

    def task(names: tuple[str, ...]) -> Task:
        images = torch.randint(0, 256, (30, 3, 11, 11), generator=generator, dtype=torch.uint8)
        part = ArrayImages(images, torch.arange(30) % len(names), [f"{names[0]}{i}" for i in range(30)])
        return Task(ClassSet(names), part, part, part)

    pair = Pair("large", task(("a", "b", "c", "d")), task(("x", "y", "z")), image_size=8)
    torch.manual_seed(0)
    model = JTLN(make_trunk(), 4, 3, Method("joint", lambda_source=1.0))
    torch.nn.init.normal_(model.target_head.weight, std=5.0)
    model.eval()
    images = pair.target.test.images
    to_float = ToFloat(model.trunk.mean, model.trunk.std)
    views = {
        "none": [v2.center_crop(images, [8, 8])],
        "flip": [v2.center_crop(images, [8, 8]), v2.horizontal_flip(v2.center_crop(images, [8, 8]))],
        "ten_crop": list(v2.ten_crop(images, [8, 8])),
    }[kind]
    with torch.no_grad():
        wanted = torch.stack([model(to_float(view)).target.softmax(1) for view in views]).mean(0)
    wanted_accuracy = (wanted.argmax(1) == pair.target.test.labels).float().mean()

    budget = Budget(1, 1, 4, 4)
    loaders = pair_data(pair, model.trunk, budget, seed=0, augment=None, eval_batch_size=16, test_views=kind)
    seen: list[torch.Tensor] = []
    model.confusion.update = lambda predictions, labels: seen.append(predictions)
    values = trainer(tmp_path, epochs=1).test(model, loaders, verbose=False)[0]
    assert torch.allclose(torch.cat(seen), wanted, atol=1e-6)
    assert values["test/target/accuracy"] == pytest.approx(float(wanted_accuracy))
    trained = loaders.on_after_batch_transfer({"target": pair.target.train.__getitems__([0, 1])}, 0)
    assert trained["target"][0].shape == (2, 3, 8, 8)
