"""The main job on real architectures: compile, check, and say what came out.

    make demo      or      python examples/demo.py [model ...] [--rounds N]

SqueezeNet and ResNet-50 come with the onnx package as architectures without trained weights; they
get seeded random ones that behave like trained ones (benchmarks/models.py). Each is compiled, run,
and compared with a float64 execution of the same graph by numpy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import tilewright as tw
from tilewright.compiler.frontends import onnx as frontend
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.text import human_bytes, human_time

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import models  # benchmarks/ is no package

COMPILE = """\
import json, sys, time
import tilewright as tw
start = time.perf_counter()
exe = tw.compile(sys.argv[1])
print(json.dumps([time.perf_counter() - start, exe.stats.built, exe.stats.distinct]))
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("models", nargs="*", default=["squeezenet", "resnet50"])
    p.add_argument("--rounds", type=int, default=30, help="calls that are timed")
    args = p.parse_args()
    for name in args.models:
        show(name, args.rounds)


def show(name: str, rounds: int) -> None:
    """Compile, check and time one model."""
    path = models.path(name)
    print(f"\n{name}  ({human_bytes(path.stat().st_size)})")
    with tempfile.TemporaryDirectory() as empty:
        cold = compile_elsewhere(path, empty)
        warm = compile_elsewhere(path, empty)
    exe = tw.compile(path)
    spec = exe.inputs[0]
    x = np.random.default_rng(0).standard_normal(spec.shape).astype(spec.dtype)

    y = exe(x)
    truth = evaluate(frontend.read(path), {spec.name: x})[exe.outputs[0].name]
    error = float(np.abs(y - truth).max() / np.abs(truth).max())
    if not error < 1e-3:
        raise SystemExit(f"{name}: the result is wrong by {error:.1e} of its largest value")

    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        exe(x)
        times.append(time.perf_counter() - start)
    middle = statistics.median(times)
    spread = (max(times) - min(times)) / 2 / middle
    plan = exe.plan
    print(f"  {len(exe.stages[0].graph.ops)} ops -> {len(exe.kernels)} kernels")
    print(f"  arena {human_bytes(plan.arena_bytes)} (lower bound "
          f"{human_bytes(plan.lower_bound_bytes)}, without sharing "
          f"{human_bytes(plan.unshared_bytes)})")  # fmt: skip
    print(f"  compiled in {human_time(cold[0])} cold ({cold[1]} kernels built), "
          f"{human_time(warm[0])} in a second process ({warm[1]} built)")  # fmt: skip
    print(f"  error {error:.1e} of max |y|, against float64")
    print(f"  latency {human_time(middle)} median of {rounds}, fastest {human_time(min(times))}, "
          f"+-{spread:.0%}, {exe.threads} threads")  # fmt: skip
    print("  where the time goes:")
    for row in sorted(exe.profile(x).rows, key=lambda r: -r.seconds)[:8]:
        print(f"    {row.share:6.1%} {human_time(row.seconds):>8} {row.gflops:7.1f} GFLOP/s  "
              f"{row.label}")  # fmt: skip


def compile_elsewhere(path: Path, cache: str) -> tuple[float, int, int]:
    """Compile in a process of its own, over the given store: seconds, kernels built, kernels."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(path)],
        env={**os.environ, "TILEWRIGHT_CACHE": cache}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, built, distinct = json.loads(done.stdout)
    return seconds, built, distinct


if __name__ == "__main__":
    main()
