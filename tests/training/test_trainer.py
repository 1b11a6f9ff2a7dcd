"""What is kept of a training while it goes on, and the options of the trainer that a run sets itself."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from jtln.errors import UserError
from jtln.training.trainer import REFUSED, TrainerSettings, WholeCheckpoints, csv_logger


def test_a_full_disk_leaves_the_earlier_checkpoint_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"step": 1}, path)
    whole, sync = path.read_bytes(), os.fsync

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jtln.storage.os.fsync", full)
    with pytest.raises(OSError, match=r"No space left.*last\.ckpt"):
        WholeCheckpoints().save_checkpoint({"step": 2, "more": torch.zeros(1000)}, path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr("jtln.storage.os.fsync", sync)
    WholeCheckpoints().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 2}


def test_a_checkpoint_is_not_written_elsewhere_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file system, such as that of the temporary folder, would have to be copied from."""
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    moves: list[tuple[str, str]] = []
    replace = os.replace
    monkeypatch.setattr("jtln.storage.os.replace", lambda a, b: (moves.append((str(a), str(b))), replace(a, b)))
    WholeCheckpoints().save_checkpoint({"step": 1}, tmp_path / "run" / "last.ckpt")
    ((source, target),) = moves
    assert Path(source).parent == Path(target).parent == tmp_path / "run"
    assert not list(elsewhere.iterdir())


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def logged(folder: Path, steps: range) -> None:
    logger = csv_logger(folder)
    for step in steps:
        logger.log_metrics({"loss": float(step)}, step)
    logger.save()


def test_a_resumed_run_keeps_its_earlier_rows_from_the_start(tmp_path: Path) -> None:
    logged(tmp_path, range(15))
    csv_logger(tmp_path, keep_steps=10)  # and killed at once
    assert [row["step"] for row in rows(tmp_path)] == [str(step) for step in range(10)]
    assert not (tmp_path / "metrics.csv.earlier").exists()


def test_a_kill_between_deleting_and_writing_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged(tmp_path, range(12))

    def killed(*_: Any, **__: Any) -> None:
        (tmp_path / "metrics.csv").unlink(missing_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jtln.training.trainer.CSVLogger", killed)
        with pytest.raises(KeyboardInterrupt):
            csv_logger(tmp_path, keep_steps=12)
    csv_logger(tmp_path, keep_steps=12)
    assert [row["step"] for row in rows(tmp_path)] == [str(step) for step in range(12)]


@pytest.mark.parametrize("key", REFUSED)
def test_what_a_run_sets_itself_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"\b{key}, but got 1: \w"):
        TrainerSettings({key: 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "64-true"}, "precision.*64-true"),
        ({"precision": "bf16-true"}, "precision.*bf16-true"),
        ({"strategy": "ddp_spawn"}, "strategy.*ddp,.*ddp_spawn"),
        ({"strategy": "fsdp"}, "strategy.*ddp,.*fsdp"),
        ({"gradient_clip_val": -1}, "gradient_clip_val.*-1"),
        ({"gradient_clip_val": float("nan")}, "gradient_clip_val.*nan"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches.*0"),
    ],
)
def test_values_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainerSettings(options)
