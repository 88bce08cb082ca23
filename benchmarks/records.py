"""What records of tuning cost a compilation that finds its code stored.

    python benchmarks/records.py                     ResNet-50, 15 rounds
    python benchmarks/records.py squeezenet net.onnx --rounds 30

Every candidate of every problem of the model gets a made-up time on record, such that another one
than the default wins, in a cache directory of its own. Then the model is compiled in turn without
records and with them, in one process; the code of both is stored. Printed are the medians and
quartiles of the calling thread's processor time, in milliseconds: of looking records up, and of the
whole of `tw.compile`, which also packs weights on other threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import models

import tilewright as tw
from tilewright.autotune.outcome import Measurement
from tilewright.compiler.api.build import device_of, recorded_choices
from tilewright.compiler.api.compile import analyse
from tilewright.compiler.records import open_records
from tilewright.compiler.tuning.tasks import tasks_of


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("models", nargs="*", default=["resnet50"], help=".onnx files or names")
    p.add_argument("--rounds", type=int, default=15)
    args = p.parse_args()
    for path in models.files(args.models):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TILEWRIGHT_CACHE"] = folder
            print(f"{path.stem}: {measured(path, args.rounds)}", flush=True)


def measured(path: Path, rounds: int) -> str:
    """The figures of one model in words."""
    rows = fill(path)
    with_records = tw.compile(path)
    tuned = sum(k.origin.startswith("tuned") for k in with_records.kernels)
    c = analyse(path, tune=False)
    graph, chosen = c.graph, analyse(path).options

    def look_up() -> None:
        graph.derived.clear()
        recorded_choices(graph, c.target, chosen)

    samples: dict[str, list[float]] = {"look up": [], "without": [], "with": []}
    steps: dict[str, Callable[[], object]] = {
        "look up": look_up, "without": lambda: tw.compile(path, tune=False),
        "with": lambda: tw.compile(path),
    }  # fmt: skip
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.thread_time()
            step()
            samples[name].append((time.thread_time() - start) * 1e3)
    said = ", ".join(f"{name} {spread(found)}" for name, found in samples.items())
    return f"{rows} rows, {tuned} of {len(with_records.kernels)} kernels tuned; ms: {said}"


def fill(path: Path) -> int:
    """Put every candidate on record, the last as the fastest; how many."""
    c = analyse(path, tune=False)
    count = 0
    tw.compile(path)
    with open_records(writing=True, strict=True) as records:
        for use in tasks_of(c, device_of(c.target, c.options)):
            space = use.task.space
            for k, candidate in enumerate(space):
                seconds = 1e-3 * (2 - k / len(space))
                outcome = Measurement(seconds, seconds * 0.99, seconds * 1.01, 20)
                records.add(use.task.key, candidate, outcome, is_default=k == 0,
                            features=use.task.features)  # fmt: skip
                count += 1
    return count


def spread(found: list[float]) -> str:
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
