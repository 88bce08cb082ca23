"""Memory of several processes that load one saved program, with and without packed weights.

    python benchmarks/sharing.py
    python benchmarks/sharing.py vgg19 --processes 1,2,4

Every process loads the program on one thread, runs it once and waits; then all are looked at
together. Reported per process, in MiB, are the resident pages and its proportional share of them
(every page divided by the number of processes that have it), the sum of all shares, and the size of
the file. Linux only: the numbers are those of /proc/<pid>/smaps_rollup.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import models

import tilewright as tw

PROCESS = """
import sys
import numpy
import tilewright
exe = tilewright.load(sys.argv[1], threads=1)
exe(*[numpy.zeros(s.shape, s.dtype) for s in exe.inputs])
print("ready", flush=True)
sys.stdin.read()
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("model", nargs="?", default="resnet50", help=f"of {', '.join(models.NAMES)}")
    p.add_argument("--processes", default="1,2")
    args = p.parse_args()
    exe = tw.compile(models.path(args.model), threads=1)
    with tempfile.TemporaryDirectory() as folder:
        for packed in (True, False):
            path = Path(folder) / f"{packed}.tw"
            exe.save(path, packed=packed)
            kind = "packed weights in the file" if packed else "packed by every process"
            print(f"{args.model}, {kind}: {path.stat().st_size / 2**20:.0f} MiB")
            for count in map(int, args.processes.split(",")):
                found = memory(path, count)
                each = ", ".join(f"{rss:.0f} resident, share {pss:.0f}" for rss, pss in found)
                print(f"  {count} processes: {each}; together {sum(s for _, s in found):.0f} MiB")


def memory(path: Path, count: int) -> list[tuple[float, float]]:
    """(resident, proportional share) of each of `count` processes in MiB."""
    command = [sys.executable, "-c", PROCESS, str(path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        for p in processes:
            assert p.stdout is not None and p.stdout.readline() == b"ready\n"
        return [(of(p.pid, "Rss"), of(p.pid, "Pss")) for p in processes]
    finally:
        for p in processes:
            p.communicate()


def of(process: int, what: str) -> float:
    """A line of the summary of a process's mappings, in MiB."""
    found = re.search(rf"(?m)^{what}: +(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text())
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
