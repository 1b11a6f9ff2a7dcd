"""A test file run as a script in two gloo processes, which train together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def run_in_two(script: str, folder: Path, timeout: float) -> list[dict[str, Any]]:
    """What each process of ``python script folder`` saved as ``folder/RANK.pt``."""
    processes, port = [], _free_port()
    for rank in range(2):
        environment = {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        tests = Path(__file__).parent
        path = os.pathsep.join(map(str, (tests, tests.parent)))  # this checkout's package, whichever is installed
        environment |= {"NODE_RANK": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        command = [sys.executable, script, str(folder)]
        processes.append(
            subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )
    try:
        errors = [process.communicate(timeout=timeout)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
