"""The machine a benchmark runs on: what it is, what is installed, and how busy others keep it."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tilewright as tw

HERE = Path(__file__).parent


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
    """Of the code; results and the page made of them change while benchmarks run."""
    made = [f":(top,exclude){p}" for p in ("benchmarks/results", "docs/performance.md")]
    head = _git("describe", "--always").stdout.strip()
    changed = _git("diff", "--quiet", "HEAD", "--", ":(top)", *made).returncode
    return f"{head}{'-dirty' if changed else ''}" if head else "unknown"


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    told = ["git", *words]
    try:
        return subprocess.run(told, cwd=HERE, text=True, capture_output=True, check=False)
    except FileNotFoundError:  # there is no git here
        return subprocess.CompletedProcess(words, 1, "", "")


@contextmanager
def neighbours() -> Iterator[dict[str, float]]:
    """How many processors others keep busy while the block runs (0 where the system does not say),
    and the load average before it: filled in when it ends."""
    found = {"load_before": os.getloadavg()[0], "foreign_processors": 0.0}
    start, busy, own = time.perf_counter(), _busy_seconds(), _own_seconds()
    yield found
    wall = max(time.perf_counter() - start, 1e-3)
    foreign = (_busy_seconds() - busy) - (_own_seconds() - own)
    found["foreign_processors"] = max(0.0, foreign / wall)


def _busy_seconds() -> float:
    """Processor seconds that the whole machine has worked; NaN where the system does not say."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return float("nan")
    user, nice, system, _, _, irq, softirq, *_ = map(int, words)
    return (user + nice + system + irq + softirq) / float(os.sysconf("SC_CLK_TCK"))


def _own_seconds() -> float:
    """Of this process and of those that it has waited for."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, whose))
