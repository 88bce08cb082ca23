"""One small graph at every level, from the graph as written to machine code."""

from __future__ import annotations

import numpy as np

import tilewright as tw


def graph() -> tw.Graph:
    """layer = gelu(x @ w + b), then normalised: five operators that become two kernels or so."""
    rng = np.random.default_rng(0)
    g = tw.Graph("layer")
    x = g.input("x", (64, 96))
    w = g.parameter("w", rng.standard_normal((96, 64)).astype(np.float32))
    b = g.parameter("b", rng.standard_normal(64).astype(np.float32))
    y = g.gelu(g.matmul(x, w, name="project") + b)
    scale, shift = np.ones(64, np.float32), np.zeros(64, np.float32)
    g.output(g.layer_normalization(y, scale, shift, name="norm"), "y")
    return g


def main() -> None:
    exe = tw.compile(graph())
    assert isinstance(exe, tw.Executable)
    for stage in exe.stages:
        changed = "" if stage.changed else "  (nothing to do)"
        print(f"{stage.name:24} {stage.milliseconds:7.2f} ms  {len(stage.graph.ops)} ops{changed}")
    for level in ("graph", "fused", "memory", "kernels"):
        print(f"\n----- {level}\n\n{exe.ir(level).rstrip()}")
    for level in ("llvm", "asm"):
        lines = exe.ir(level).splitlines()
        print(f"\n----- {level}, {len(lines)} lines, of which the first:\n")
        print("\n".join(lines[:12]))
    print("\n----- kernels in order, and where the time goes\n")
    for k in exe.kernels:
        print(f"{k.name}: {', '.join(k.ops)}; {k.flops / 1e3:.0f} kFLOP, {k.bytes / 1e3:.0f} kB")
    print()
    print(exe.profile())


if __name__ == "__main__":
    main()
