"""Real networks, from model file to measured native code: what `make demo` shows.

    python examples/demo.py                 SqueezeNet and ResNet-50
    python examples/demo.py shufflenet      any of benchmarks/models.py

The architectures come with the onnx package, the weights are random but calibrated. Each result is
compared with a float64 execution of the same graph by numpy; the exit status is 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import tilewright as tw
from tilewright.compiler.cli.bench import difference, measure
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.text import human_bytes, human_time, table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import models

TOLERANCE = 1e-4  # of max |y|: float32 sums of thousands of products, fifty layers deep; about 5e-6
TOP = 8

COMPILE_AGAIN = """
import json, sys, time
import tilewright as tw
start = time.perf_counter()
exe = tw.compile(sys.argv[1])
print(json.dumps({"seconds": time.perf_counter() - start, "built": exe.stats.built}))
"""


def demonstrate(name: str, seconds: float) -> bool:
    """Compile, check and time one model; whether its results are right."""
    path = models.path(name)
    feeds = models.sample(name)
    with tempfile.TemporaryDirectory(prefix="tilewright-demo-") as cache:
        os.environ["TILEWRIGHT_CACHE"] = cache  # empty, so that the first compilation is cold
        start = time.perf_counter()
        exe = tw.compile(path)
        cold = time.perf_counter() - start
        command = [sys.executable, "-c", COMPILE_AGAIN, str(path)]
        again = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
        warm = json.loads(again.stdout)
    assert isinstance(exe, tw.Executable)

    results = exe.run(feeds)
    truth = evaluate(exe.stages[0].graph, feeds)
    error = difference(list(results.values()), [truth[n] for n in results])
    right = error <= TOLERANCE

    latency = measure({"": lambda: exe.run(feeds)}, None, seconds)[""]
    profile = exe.profile(*feeds.values(), rounds=10)
    plan = exe.plan
    print(f"{name}  ({path.stat().st_size / 1e6:.0f} MB)")
    facts = [
        ("program", f"{len(exe.stages[0].graph.ops)} ops -> {len(exe.kernels)} kernels "
                    f"({exe.stats.distinct} distinct)"),
        ("memory", f"arena {human_bytes(plan.arena_bytes)}, lower bound "
                   f"{human_bytes(plan.lower_bound_bytes)}, unshared "
                   f"{human_bytes(plan.unshared_bytes)}"),
        ("compiled", f"cold {human_time(cold)}; in a second process {human_time(warm['seconds'])} "
                     f"({warm['built']} kernels built)"),
        ("result", f"{'right' if right else 'WRONG'}: differs from float64 numpy by {error:.1e} "
                   f"(at most {TOLERANCE:.0e})"),
        ("latency", f"{human_time(latency.median)} +-{latency.spread:.0%}, {exe.threads} threads, "
                    f"{len(latency.samples)} rounds"),
    ]  # fmt: skip
    print("\n".join(f"  {line}" for line in table(facts).splitlines()))
    slowest = sorted(profile.rows, key=lambda row: -row.seconds)[:TOP]
    rows = [
        (f"{row.seconds * 1e6:.0f}", f"{row.share:.1%}", f"{row.gflops:.1f}", f"{row.gbytes:.1f}",
         row.kernel, row.label)
        for row in slowest
    ]  # fmt: skip
    listing = table(rows, ("us", "share", "GFLOP/s", "GB/s", "kernel", "model nodes"), "rrrr")
    print(f"  where the time goes, {len(rows)} of {len(profile.rows)} kernels:")
    print("\n".join(f"    {line}" for line in listing.splitlines()) + "\n")
    return bool(right and all(np.isfinite(y).all() for y in results.values()))


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("models", nargs="*", default=["squeezenet", "resnet50"])
    p.add_argument("--seconds", type=float, default=3.0, help="how long to measure each")
    args = p.parse_args()
    unknown = [name for name in args.models if name not in models.NAMES]
    if unknown:
        p.error(f"no model {unknown[0]!r}; there are {', '.join(models.NAMES)}")
    right = [demonstrate(name, args.seconds) for name in args.models]
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
