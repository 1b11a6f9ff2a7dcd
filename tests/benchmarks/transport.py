"""What the transport loss costs on one CPU thread: beside POT's batched solver, and in a training step of AlexNet.

    python tests/benchmarks/transport.py

POT's `ot.solve_batch` stops at a marginal error in the 2-norm, ours in the 1-norm (which is never the smaller one), so
that the same tolerance asks more of ours. Both get float32. A time is the median of several runs.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import ot
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from jtln.transport.loss import TransportLoss
from jtln.transport.sinkhorn import sinkhorn
from jtln.trunks.alexnet import alexnet

EPSILON, TOLERANCE = 0.1, 1e-5
BATCH, PIXELS, CLASSES = 64, 224, (1000, 256)


def seconds(function: Callable[[], Any], runs: int) -> float:
    """Median time of a call, after one to warm up."""
    function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def beside_pot(batch: int, s: int, t: int, runs: tuple[int, int]) -> None:
    torch.manual_seed(0)
    log_a, log_b, cost = log_softmax(torch.randn(batch, s), 1), log_softmax(torch.randn(batch, t), 1), torch.rand(s, t)
    costs = cost.expand(batch, -1, -1).contiguous()

    def ours() -> Tensor:
        return sinkhorn(log_a, log_b, cost, EPSILON, tolerance=TOLERANCE).value

    def theirs() -> Tensor:
        return ot.solve_batch(
            costs, EPSILON, log_a.exp(), log_b.exp(), tol=TOLERANCE, reg_type="entropy", grad="detach"
        ).value

    double = sinkhorn(log_a.double(), log_b.double(), cost.double(), EPSILON, tolerance=1e-12, max_iterations=10000)

    def error(value: Tensor) -> float:  # of our value: POT's entropy lacks the 1, and its value our -eps
        return float(((value - double.value) / double.value).abs().max())

    our_time, their_time = seconds(ours, runs[0]), seconds(theirs, runs[1])
    print(
        f"({batch}, {s}, {t})  jtln {our_time * 1e3:8.2f} ms, relative error {error(ours()):.1e}   "
        f"POT {their_time * 1e3:8.0f} ms, relative error {error(theirs() - EPSILON):.1e}   "
        f"ratio {their_time / our_time:.0f}"
    )


def share_of_a_training_step() -> None:
    torch.manual_seed(0)
    trunk = alexnet(PIXELS, weights="none")
    heads = nn.ModuleList(nn.Linear(trunk.dim, classes) for classes in CLASSES)
    transport = TransportLoss(torch.rand(CLASSES), EPSILON)
    optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=1e-3, momentum=0.9)
    images = torch.randn(BATCH, 3, PIXELS, PIXELS)
    labels = [torch.randint(classes, (BATCH,)) for classes in CLASSES]

    def step() -> None:
        optimizer.zero_grad()
        features = trunk(images)
        sum(cross_entropy(head(features), label) for head, label in zip(heads, labels, strict=True)).backward()
        optimizer.step()

    logits = [torch.randn(BATCH, classes, requires_grad=True) for classes in CLASSES]
    step_time, transport_time = seconds(step, 3), seconds(lambda: transport(*logits).backward(), 11)
    print(
        f"AlexNet step, batch {BATCH}, {PIXELS} px, {CLASSES[0]} x {CLASSES[1]} classes: {step_time * 1e3:.0f} ms; "
        f"TransportLoss forward and backward {transport_time * 1e3:.2f} ms, {transport_time / step_time:.2%} of it"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="ot")
    print(
        f"torch {torch.__version__}, POT {ot.__version__}, one thread, float32, "
        f"epsilon {EPSILON}, tolerance {TOLERANCE}"
    )
    beside_pot(64, 100, 31, runs=(51, 7))
    beside_pot(64, 1000, 256, runs=(11, 1))
    share_of_a_training_step()
