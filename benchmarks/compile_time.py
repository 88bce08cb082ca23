"""How long it takes until a model can run: compiled for the first time, compiled in a second
process that finds the code stored, or loaded as a saved program.

    python benchmarks/compile_time.py                       all models, 3 rounds
    python benchmarks/compile_time.py resnet50 net.onnx --rounds 5 --output other.json

Every figure comes from a process of its own. A round compiles twice over one cache directory,
which is empty at first: cold, then warm; and loads what the first saved. Reported are medians over
the rounds, in seconds, of the clock and of the processor (on a busy machine the processor's time
says more): `import tilewright`, reading the file's bytes into memory and nothing else
(`numpy.fromfile`), `tilewright.compile` or `tilewright.load`, how much longer that takes than
reading did in the same process (`beyond`), and what its stations took. The file is read twice: the
first time (`read`) it may have left the page cache, and a virtual machine may have to fetch memory
for it from its host; `cached` is the second time, and stands for reading in `beyond` and in the
report. What is compiled then finds both warm, too. Imports of numpy and
tilewright are not in it; what compiling imports (protobuf's classes) is. Byte code is cached, as it
is after an install. Results go to a JSON file as they come, with the machine, the versions and the
commit; a second run measures only the models that the file lacks (`--again` measures anew), and
benchmarks/report.py makes a section of docs/performance.md of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import models
from machine import about
from sheet import RESULTS, Sheet

DEFAULT = RESULTS / "compile_time.json"

PROBE = """
import json, sys, time
def now():
    return time.perf_counter(), time.process_time()
def since(start):
    return [b - a for a, b in zip(start, now())]
found = {"start": [0.0, time.process_time()]}
t = now()
import numpy
found["numpy"] = since(t)
t = now()
import tilewright
found["import"] = since(t)
t = now()
numpy.fromfile(sys.argv[1], numpy.uint8)
found["read"] = since(t)
t = now()
numpy.fromfile(sys.argv[1], numpy.uint8)
found["cached"] = since(t)
t = now()
exe = getattr(tilewright, sys.argv[2])(sys.argv[1])
found["ready"] = since(t)
found["beyond"] = [a - b for a, b in zip(found["ready"], found["cached"])]
s = exe.stats
found["stations"] = {k: getattr(s, k) for k in ("read", "passes", "kernels", "objects", "link")}
found["kernels"] = {"launches": len(exe.kernels), "distinct": s.distinct, "built": s.built}
print(json.dumps(found))
if len(sys.argv) > 3:
    exe.save(sys.argv[3])
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("models", nargs="*", help=f".onnx files, or of: {', '.join(models.NAMES)}")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--output", type=Path, default=DEFAULT, help=f"JSON file (default: {DEFAULT})")
    p.add_argument("--again", action="store_true", help="measure also what the file holds")
    args = p.parse_args()
    sheet = Sheet(args.output)
    with tempfile.TemporaryDirectory() as bytecode:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = bytecode
        subprocess.run([sys.executable, "-c", "import tilewright, onnx"], env=env, check=True)
        for path in models.files(args.models):
            if not args.again and sheet.has(path.stem):
                continue
            found = measure(path, args.rounds, env)
            sheet.put(path.stem, {"about": about(rounds=args.rounds)} | found)
            print(line(sheet.rows[-1]), flush=True)
    print(f"written to {sheet.file}")


def measure(path: Path, rounds: int, env: dict[str, str]) -> dict[str, Any]:
    """Medians of cold and warm compilations and of loads, or the error that a run ended with."""
    runs: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": [], "load": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            saved = f"{folder}/program.tw"
            for kind, task in {
                "cold": (str(path), "compile", saved),
                "warm": (str(path), "compile"),
                "load": (saved, "load"),
            }.items():
                done = subprocess.run(
                    [sys.executable, "-c", PROBE, *task], capture_output=True, text=True,
                    env={**env, "TILEWRIGHT_CACHE": f"{folder}/store"}, check=False,
                )  # fmt: skip
                if done.returncode:
                    return {"error": done.stderr.strip().splitlines()[-1]}
                runs[kind].append(json.loads(done.stdout))
    return {"bytes": path.stat().st_size, **{kind: middle(found) for kind, found in runs.items()}}


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number in a list of equal structures."""
    out: dict[str, Any] = {}
    for key, first in runs[0].items():
        values = [r[key] for r in runs]
        if isinstance(first, dict):
            out[key] = middle(values)
        elif isinstance(first, list):
            wall, cpu = zip(*values, strict=True)
            out[key] = {"wall": statistics.median(wall), "cpu": statistics.median(cpu)}
        else:
            out[key] = statistics.median(values)
    return out


def line(r: dict[str, Any]) -> str:
    """One row of the table: seconds of the clock; after reading, what is beyond it."""
    if "error" in r:
        return f"{r['name']:14s} {r['error']}"
    text = f"{r['name']:14s}  cold {r['cold']['ready']['wall']:6.3f} s"
    for kind in ("warm", "load"):
        ready, read, beyond = (r[kind][k]["wall"] for k in ("ready", "cached", "beyond"))
        text += f"  {kind} {ready:.3f} s = reading {read:.3f} + {beyond:.3f}"
        text += f" (processor {r[kind]['ready']['cpu']:.3f})"
    warm = r["warm"]
    return f"{text}  import {warm['import']['wall']:.2f} s  kernels {warm['kernels']['distinct']:g}"


if __name__ == "__main__":
    main()
