"""Measures everything on docs/performance.md, then makes that page: some 35 minutes on two cores.

    python benchmarks/everything.py             goes on where it was interrupted
    python benchmarks/everything.py --fresh     forgets earlier results first

The machine should have nothing else to do. A script that fails does not keep the next from running.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import Final

from machine import HERE
from sheet import RESULTS

SCRIPTS: Final = (
    ("inference.py",),
    ("kernels.py", "--output", str(RESULTS / "kernels.json")),
    ("memory.py",),
    ("overhead.py",),
    ("compile_time.py", "--rounds", "2"),
    ("autotune.py",),
    ("report.py",),
)
FILES: Final = ("inference", "kernels", "memory", "overhead", "compile_time", "autotune",
                 "autotune_spaces")  # fmt: skip


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--fresh", action="store_true", help="remove earlier results first")
    p.add_argument("--seconds", default="2", metavar="S", help="as of inference.py (default: 2)")
    args = p.parse_args()
    if args.fresh:
        for name in FILES:
            (RESULTS / f"{name}.json").unlink(missing_ok=True)
    failed = []
    for name, *options in SCRIPTS:
        if name == "inference.py":
            options += ["--seconds", args.seconds]
        start = time.perf_counter()
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / name), *options], check=False).returncode:
            failed.append(name)
        print(f"== {name} took {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
