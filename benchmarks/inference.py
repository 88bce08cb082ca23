"""Latency of whole models, beside the runtimes that are installed.

    python benchmarks/inference.py                        all models, 2 threads
    python benchmarks/inference.py resnet50 squeezenet --threads 1 --seconds 20

Every model is measured by `tilewright bench` in a process of its own, where all contestants take
turns with the same thread count. The numbers go to benchmarks/results/ as JSON, with the machine,
the versions and the commit; a table is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import models

import tilewright as tw

HERE = Path(__file__).parent


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("models", nargs="*", help=f"of: {', '.join(models.NAMES)}")
    p.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    p.add_argument("--seconds", type=float, default=10.0, help="of measuring per model")
    p.add_argument("--peers", default="onnxruntime,openvino")
    p.add_argument("--output", type=Path, help="JSON file (default: one in benchmarks/results)")
    args = p.parse_args()
    results = []
    for name in args.models or models.NAMES:
        try:
            path = models.path(name)
        except ModuleNotFoundError as e:
            print(f"{name:14s} left out: {e}")
            continue
        results.append(measure(name, path, args))
        print(line(results[-1]), flush=True)
    peers = [n for n in args.peers.split(",") if importlib.util.find_spec(n)]
    facts = about(threads=args.threads, seconds=args.seconds, peers_installed=peers)
    out = args.output or HERE / "results" / f"inference_{time.strftime('%Y%m%d_%H%M%S')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"about": facts, "results": results}, indent=1) + "\n")
    print(f"written to {out}")


def measure(name: str, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What `tilewright bench --json` says of one model."""
    command = [sys.executable, "-m", "tilewright", "bench", str(path), "--json",
               "--peers", args.peers, "--threads", str(args.threads),
               "--seconds", str(args.seconds)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"model": name, "error": done.stderr.strip()}
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"model": name}


def line(r: dict[str, Any]) -> str:
    """One row of the table: milliseconds, and how many times as long each peer takes."""
    if "error" in r:
        return f"{r['model']:14s} {r['error']}"
    ours = r["latency"]
    text = f"{r['model']:14s} {ours['median_seconds'] * 1e3:9.3f} ms +-{ours['spread']:.0%}"
    for peer, x in r["peers"].items():
        text += (f"   {peer} {x['median_seconds'] * 1e3:.3f} ms x{x['speedup']:.2f} "
                 f"(outputs differ by {x['difference']:.0e})")  # fmt: skip
    return text


def about(**settings: Any) -> dict[str, Any]:
    """The machine, the versions, the commit and the settings of a benchmark."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": cpu_name(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "tilewright": tw.__version__,
        "commit": commit(),
        **settings,
    }


def cpu_name() -> str:
    lines: Iterable[str] = ()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")
    return f"{name or platform.machine()}, {os.cpu_count()} CPUs"


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, text=True,
                          capture_output=True, check=False)  # fmt: skip
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
