"""Two gloo processes, which train together: copies of this one, so that nothing is imported anew."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import distributed


def run_in_two(function: Callable[[Path], Any], folder: Path, timeout: float = 300) -> list[Any]:
    """Return what ``function(folder)`` returned in each of two processes that have a group together."""
    context, port = get_context("fork"), _free_port()
    processes = [context.Process(target=_run, args=(function, folder, rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout)
    finally:
        for process in processes:
            process.kill()
    errors = "\n".join((folder / f"{rank}.txt").read_text(encoding="utf-8") for rank in range(2))
    assert [process.exitcode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _run(function: Callable[[Path], Any], folder: Path, rank: int, port: str) -> None:
    """Be one of the two."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with open(folder / f"{rank}.txt", "w", encoding="utf-8") as errors, open(os.devnull, "w") as nothing:
        os.dup2(errors.fileno(), 2)
        sys.stdout, sys.stderr = nothing, errors
        torch.set_num_threads(1)  # a copy has none of the other threads
        # As after a pre-training: the processes share the images that are read before the first step as well.
        distributed.init_process_group("gloo", rank=rank, world_size=2)
        torch.save(function(folder), folder / f"{rank}.pt")


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
