"""Programs for tests of the page."""

from __future__ import annotations

import numpy as np

import tilewright as tw
from tilewright.compiler.api.executable import Executable
from tilewright.compiler.inspect.machine import Limits, MemoryLevel
from tilewright.compiler.inspect.profile import Profile, profile

EVIL = '</script><img src=x onerror="window.broken=1"><!-- &lt;{{title}}\u202e\u2028'
LIMITS = Limits(
    1, 100e9,
    (MemoryLevel("L1", 1 << 15, 2e11, 1e11, 2e11), MemoryLevel("DRAM", None, 1e10, 1e10, 1e10)),
)  # fmt: skip


def small() -> Executable:
    """Two convolutions that join, a softmax and a view; blobs with names of ill will."""
    rng = np.random.default_rng(0)
    g = tw.Graph(EVIL)
    x = g.input(EVIL + "x", (1, 4, 8, 8))
    w = g.parameter(EVIL + "w", rng.standard_normal((4, 4, 3, 3), dtype=np.float32))
    a = g.relu(g.conv(x, w, pads=1))
    b = g.add(g.conv(a, w, pads=1), a)
    y = g.softmax(g.reshape(b, shape=(4, 64)), axis=-1)
    g.output(y, name=EVIL + "y")
    exe = tw.compile(g, threads=1, tune=False)
    assert isinstance(exe, Executable)
    return exe


def deep(blocks: int) -> Executable:
    """So many blocks of four nodes: a matrix product, an offset, an activation, and a sum with what
    came in, which is two kernels for every fourth block and one for the others."""
    g = tw.Graph("deep")
    w = g.constant(np.eye(16, dtype=np.float32))
    one = g.constant(np.ones(16, np.float32))
    h = g.input("x", (4, 16))
    for k in range(blocks):
        a = g.add(g.matmul(h, w), one)
        h = g.add(g.tanh(a) if k % 4 else g.softmax(a, axis=0), h)
    g.output(h, name="y")
    exe = tw.compile(g, threads=1, tune=False)
    assert isinstance(exe, Executable)
    return exe


def profiled(exe: Executable) -> Profile:
    """A profile without measuring: launch k takes k + 1 microseconds."""
    c = exe._compilation
    seconds = [1e-6 * (k + 1) for k in range(len(c.launches))]
    return profile(c.graph, c.launches, c.plan.arena_bytes, LIMITS, seconds,
                   samples=[seconds] * 8)  # fmt: skip
