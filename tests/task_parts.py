"""The parts of a task by name."""

from __future__ import annotations

from jtln.data.images import ImageSet
from jtln.data.pairs import Task


def parts(task: Task) -> dict[str, ImageSet]:
    return {"train": task.train, "val": task.val, "test": task.test}
