"""Look at every level between a graph and its machine code.

python examples/inspect_ir.py
"""

from __future__ import annotations

import numpy as np

import tilewright as tw


def main() -> None:
    g = tw.Graph("attention_row")
    x = g.input("scores", (4, 100))
    g.output(g.softmax(x * 0.125, axis=-1), name="weights")
    exe = tw.compile(g)

    print("--- the graph as it was built")
    print(exe.ir("graph"))
    print("--- after the passes: one fusion group")
    print(exe.ir("fused"))
    print("--- its kernel: loops over rows, the two reductions placed inside")
    print(exe.ir("kernels"))
    print("--- the memory plan")
    print(exe.ir("memory"))
    print("--- the passes")
    for stage in exe.stages:
        mark = "changed" if stage.changed else ""
        print(f"{stage.name:24s} {stage.milliseconds:7.2f} ms  {len(stage.graph.ops)} ops  {mark}")
    llvm, asm = exe.ir("llvm"), exe.ir("asm")
    print(f"--- LLVM IR: {len(llvm.splitlines())} lines, assembly: {len(asm.splitlines())} lines")
    print("--- where the time goes")
    print(exe.profile(np.zeros((4, 100), np.float32)))


if __name__ == "__main__":
    main()
