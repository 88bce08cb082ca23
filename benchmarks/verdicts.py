"""What `tilewright profile --against` says of a model compared with itself.

    python benchmarks/verdicts.py                              four models, 3 processes and 2 pairs
    python benchmarks/verdicts.py resnet50 --processes 4 --pairs 0

Every verdict but "no difference can be shown" is wrong then. Printed are, of profiles of separate
processes and of pairs that took turns in one: the parts compared, the wrong verdicts, how many
there would be without a margin between intervals, and the median over parts of how much slower one
would have had to be for that to show. One thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import models

from tilewright.compiler.inspect.compare import APART, TOGETHER, Comparison, compare, read_run

NAMES = ("transformer", "resnet50", "squeezenet", "mobilenet")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("models", nargs="*", default=NAMES, help=".onnx files or names")
    p.add_argument("--processes", type=int, default=3, help="profiles, all pairs of which count")
    p.add_argument("--pairs", type=int, default=2, help="comparisons in turns")
    p.add_argument("--rounds", type=int, default=30)
    args = p.parse_args()
    for path in models.files(args.models):
        command = ["profile", str(path), "--threads", "1", "--rounds", str(args.rounds)]
        runs = [profiled([*command, "--json"]) for _ in range(args.processes)]
        before_and_after = [compare(read_run(a, "a"), read_run(b, "b"))
                            for a, b in itertools.combinations(runs, 2)]  # fmt: skip
        if before_and_after:
            ratios = [r for c in before_and_after for r in intervals(c)]
            print(f"{path.stem}, processes: {counted(ratios, APART)}", flush=True)
        against = [*command, "--against", str(path), "--json"]
        turns = [json.loads(profiled(against))["comparison"] for _ in range(args.pairs)]
        ratios = [(part["low"], part["high"]) for c in turns for part in c["parts"]]
        if ratios:
            print(f"{path.stem}, in turns: {counted(ratios, TOGETHER)}", flush=True)


def profiled(arguments: Sequence[str]) -> str:
    """What the command prints, run in a process of its own."""
    with tempfile.TemporaryFile("w+") as out:
        subprocess.run([sys.executable, "-m", "tilewright", *arguments], check=True, stdout=out)
        out.seek(0)
        return out.read()


def intervals(c: Comparison) -> Iterator[tuple[float, float]]:
    return ((part.low, part.high) for part in c.parts)


def counted(ratios: Sequence[tuple[float, float]], margin: float) -> str:
    """The figures in words. ratios: where the true ratio of each part lies, as far as is known."""
    wrong = [sum(high < 1 - m or low > 1 + m for low, high in ratios) for m in (margin, 0.0)]
    shown = statistics.median(high / low for low, high in ratios) * (1 + margin) - 1
    return (f"{wrong[0]} of {len(ratios)} wrong, {wrong[1]} without a margin; "
            f"{shown:.0%} slower would show in half of them")  # fmt: skip


if __name__ == "__main__":
    main()
