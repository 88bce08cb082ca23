"""A dask.distributed cluster of this machine's own, as it would be started by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tilewright.autotune import farm
from tilewright.compiler.tuning import farmhand


@contextmanager
def cluster(
    folder: Path, workers: Sequence[Mapping[str, str]]
) -> Iterator[tuple[str, Mapping[str, subprocess.Popen[bytes]]]]:
    """The address of its scheduler, and the process of every worker by its address. workers: what
    each has in its environment, beside a cache of its own."""
    pytest.importorskip("distributed")
    where = folder / "scheduler.json"
    shared = ["--scheduler-file", str(where), "--no-dashboard"]
    scheduler = ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", *shared]
    running = [_started(scheduler, folder, {})]
    try:
        for k, given in enumerate(workers):
            own = {"TILEWRIGHT_CACHE": str(folder / f"worker{k}"), **given}
            command = ["dask_worker", "--no-nanny", "--nthreads", "1", "--name", f"w{k}", *shared]
            running.append(_started(command, folder, own))
        address, until = "", time.monotonic() + 60
        while not address and time.monotonic() < until:
            time.sleep(0.1)
            if where.exists() and where.read_text():
                address = json.loads(where.read_text())["address"]
        joined = farm.Farm(address, farmhand.measure, farmhand.describe)
        while len(joined.members()) < len(workers) and time.monotonic() < until:
            time.sleep(0.1)
        known = joined._client.scheduler_info()["workers"]
        joined.close()
        yield address, {a: running[1 + int(info["name"][1:])] for a, info in known.items()}
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def _started(
    command: Sequence[str], folder: Path, given: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", f"distributed.cli.{command[0]}", *command[1:]]
    return subprocess.Popen(argv, cwd=folder, env={**os.environ, **given},
                            stderr=subprocess.DEVNULL)  # fmt: skip
