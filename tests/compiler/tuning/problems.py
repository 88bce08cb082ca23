"""Small tasks for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.autotune.task import Task
from tilewright.compiler.api.build import device_of
from tilewright.compiler.api.compile import analyse
from tilewright.compiler.graph.builder import GraphBuilder
from tilewright.compiler.tuning.tasks import tasks_of


def convolution(
    numerics: str = "standard", threads: int = 1, channels: int = 32, size: int = 14,
    kernel: int = 3,
) -> Task:  # fmt: skip
    """A convolution of `channels` channels with bias and relu."""
    rng = np.random.default_rng(3)
    g = GraphBuilder("net")
    x = g.input("x", (1, channels, size, size))
    w = rng.standard_normal((channels, channels, kernel, kernel)).astype(np.float32)
    b = rng.standard_normal(channels).astype(np.float32)
    g.output(g.relu(g.conv(x, w, b, pads=kernel // 2)), name="y")
    return task_of_largest(g, numerics, threads)


def product(rows: int = 5, depth: int = 37, columns: int = 70) -> Task:
    """A matrix product of odd sizes."""
    g = GraphBuilder("net")
    w = np.random.default_rng(4).standard_normal((depth, columns)).astype(np.float32)
    g.output(g.matmul(g.input("x", (rows, depth)), w), name="y")
    return task_of_largest(g, "standard", 1)


def task_of_largest(g: Any, numerics: str, threads: int) -> Task:
    """The task with the largest space."""
    c = analyse(g.build(), numerics=numerics, threads=threads)
    return max((u.task for u in tasks_of(c, device_of(c.target, c.options))),
               key=lambda t: len(t.space))  # fmt: skip
