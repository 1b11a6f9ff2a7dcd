"""Two gloo processes, which train together: copies of a process that has only imported what they need."""

from __future__ import annotations

import inspect
import os
import runpy
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import distributed


def run_in_two(function: Callable[[Path], Any], folder: Path, timeout: float = 600) -> list[Any]:
    """Return what ``function(folder)``, by its name in its file, returned in each of two processes of one group."""
    context, port = get_context("forkserver"), _free_port()
    context.set_forkserver_preload(["jtln.training.run"])  # imported once, and not by each of the two
    named = (inspect.getfile(function), function.__name__)
    processes = [context.Process(target=_run, args=(*named, folder, rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout)
    finally:
        for process in processes:
            process.kill()
    errors = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt")))
    assert [process.exitcode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _run(script: str, name: str, folder: Path, rank: int, port: str) -> None:
    """Be one of the two."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with open(folder / f"{rank}.txt", "w", encoding="utf-8") as errors, open(os.devnull, "w") as nothing:
        sys.stdout, sys.stderr = nothing, errors
        torch.set_num_threads(1)
        try:
            # As after a pre-training: the processes share the images that are read before the first step as well.
            distributed.init_process_group("gloo", rank=rank, world_size=2)
            torch.save(runpy.run_path(script)[name](folder), folder / f"{rank}.pt")
        except BaseException:
            traceback.print_exc()
            errors.flush()
            os._exit(1)  # the other one would wait for this one


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
