"""The LightningModule in a program of somebody else: their data module, their Trainer, nothing of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from jtln.costs import WordNetCost
from jtln.errors import UserError
from jtln.methods import Method, Penalty, TargetBatch
from jtln.module import JTLN, Optimization
from jtln.names.class_set import ClassSet
from jtln.transport import TransportLoss
from jtln.trunks import Trunk

SOURCE, TARGET = ClassSet(["dog", "cat", "truck"]), ClassSet(["wolf", "bus"])


def images(classes: int, count: int = 60) -> TensorDataset:
    """Return images of 4 x 4 pixels, each brighter in the row of its class."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.arange(count) % classes
    pixels = torch.randn(count, 3, 4, 4, generator=generator) * 0.3
    pixels[torch.arange(count), :, labels] += 1.0
    return TensorDataset(pixels, labels)


class TheirData(pl.LightningDataModule):
    """Two loaders of different lengths for training, and one of the target for everything else."""

    def train_dataloader(self) -> CombinedLoader:
        sizes = {"source": (3, 12), "target": (2, 4)}
        loaders = {side: DataLoader(images(s), batch_size=b, shuffle=True) for side, (s, b) in sizes.items()}
        return CombinedLoader(loaders, "max_size_cycle")

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(images(2, 40), batch_size=16)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()


class WithImages(TheirData):
    """The same with what features are read from."""

    def images_of(
        self, side: str, part: str = "train", at_most: int | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        pixels, labels = images({"source": 3, "target": 2}[side]).tensors
        yield pixels[:at_most].to(device), labels[:at_most].to(device)


class FromFeatures(Penalty):
    """Reads the features of the target before training."""

    seen = 0

    def on_fit_start(self, network: Any, features: Any) -> None:
        self.seen = sum(len(rows) for rows, _ in features.of("target"))

    def forward(self, network: Any, batch: TargetBatch) -> Tensor:
        return batch.features.square().mean() * 1e-3


def trunk() -> Trunk:
    return Trunk(nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh()), "theirs", 16, (0.5,) * 3, (0.5,) * 3)


def module(**method: Any) -> JTLN:
    torch.manual_seed(0)
    loss = TransportLoss(WordNetCost(metric="path").matrix(SOURCE, TARGET), epsilon=0.1)
    objective = Method("theirs", lambda_source=1.0, lambda_ot=0.1, **method)
    return JTLN(trunk(), 3, 2, objective, loss, Optimization(partial(torch.optim.Adam, lr=0.01), 1.0))


def trainer(folder: Path) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(accelerator="cpu", devices=1, max_epochs=4, default_root_dir=folder, **quiet)


def test_trains_tests_and_is_loaded(tmp_path: Path) -> None:
    network, fitting = module(), trainer(tmp_path)
    fitting.fit(network, TheirData())
    (measured,) = fitting.test(network, TheirData(), verbose=False)
    assert measured["test/target/accuracy"] > 0.9
    fitting.save_checkpoint(tmp_path / "theirs.ckpt")
    with pytest.raises(UserError, match="trunk="):
        JTLN.load_from_checkpoint(tmp_path / "theirs.ckpt")
    again = JTLN.load_from_checkpoint(tmp_path / "theirs.ckpt", trunk=trunk())
    pixels = images(2).tensors[0]
    with torch.no_grad():
        for one, other in zip(network.eval()(pixels), again.eval()(pixels), strict=True):
            torch.testing.assert_close(one, other)


def test_what_reads_features_wants_images_of(tmp_path: Path) -> None:
    penalty = FromFeatures()
    trainer(tmp_path).fit(module(penalty=penalty), WithImages())
    assert penalty.seen == 60
    with pytest.raises(UserError, match=r"images_of.*ImageSource.*TheirData"):
        trainer(tmp_path).fit(module(penalty=FromFeatures()), TheirData())
