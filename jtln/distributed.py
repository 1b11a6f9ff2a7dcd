"""Sums, rows and decisions over the processes of a run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed

from jtln.errors import UserError

Batch = tuple[Tensor, Tensor]  # (B, D), labels (B,)
_DECISION = "JTLN_DECISION"  # environment variable: what the first process found, for those that it starts


def process() -> tuple[int, int]:
    """Return this process's rank, and the number of processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def first_decides(name: str, found: bool) -> bool:
    """Return what the first process found, in every process: all of them call this, in the same order.

    Processes that run already hear it over the network. Those that the first one starts later (Lightning's DDP) look
    by themselves when they come here; they hear it through the environment.

    Args:
        name: of the decision, without a colon.
        found: this process's own finding, which counts in the first process alone.
    """
    if process()[1] > 1:
        said: list[Any] = [found]
        distributed.broadcast_object_list(said, src=0)
        return bool(said[0])
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[_DECISION] = f"{name}:{int(found)}"
        return found
    decided, _, value = os.environ.pop(_DECISION, "").partition(":")
    return bool(int(value)) if decided == name else found


def reset() -> None:
    """Forget what an earlier run in this process decided: it must not reach the processes that this run starts."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ.pop(_DECISION, None)


def accumulation_dtype(value: Tensor) -> torch.dtype:
    """Return the dtype for long sums of ``value``: float64, but float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if value.device.type == "mps" else torch.float64


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum ``value`` over all processes, in place, and return it."""
    if process()[1] > 1:
        distributed.all_reduce(value)
    return value


def all_gather(rows: Tensor) -> list[Tensor]:
    """Every process's rows, (B_r, ...) each, in the order of their ranks; the B_r may differ. Carries no gradient."""
    rank, processes = process()
    rows = rows.detach()
    if processes == 1:
        return [rows]
    sizes = rows.new_zeros(processes, dtype=torch.int64)
    sizes[rank] = len(rows)
    most = int(all_reduce_sum(sizes).max())
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(processes)]
    distributed.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes.tolist(), strict=True)]


def gather_in_order(rows: Tensor) -> Tensor:
    """Return the rows (N, ...) of all processes in the order that one process would have them in.

    The loaders give process r of W every W-th row, from the r-th on.
    """
    parts = all_gather(rows)
    together = torch.cat(parts)
    for rank, part in enumerate(parts):
        together[rank :: len(parts)] = part
    return together


@torch.no_grad()
def class_sums(batches: Iterable[Batch], classes: int) -> Batch:
    """Sum of the rows (C, D) and number of images (C,) of every class, float32, over all processes.

    Args:
        batches: rows (B, D) and labels (B,) in [0, C), this process's share of them.
        classes: C.

    Raises:
        UserError: there is no batch.
    """
    sums = counts = None
    for rows, labels in batches:
        if sums is None or counts is None:
            sums = rows.new_zeros(classes, rows.shape[1], dtype=torch.float32)
            counts = rows.new_zeros(classes, dtype=torch.float32)
        sums.index_add_(0, labels, rows.detach().float())
        counts.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float32))
    if sums is None or counts is None:
        raise UserError("expected at least one batch of features, but got none")
    return all_reduce_sum(sums), all_reduce_sum(counts)
