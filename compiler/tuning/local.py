"""Who runs problems on this machine's processors."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from ...autotune.isolation import IsolatedRunner
from ...autotune.workers import Limits
from ..runtime.linux import available_processors
from ..store import cache_directory
from .faults import check

WORKER: Final = (sys.executable, "-P", str(Path(__file__).with_name("start.py")))
"""How a worker process is started."""

GPU_LIMITS: Final = Limits(prepare=180.0, memory=0)
"""Of workers for GPUs: problems are larger, and the memory that a driver takes has no end that is
known."""


def local_runner(limits: Limits | None = None) -> IsolatedRunner:
    """A Runner whose workers build and time candidates here.

    limits: of workers (default: half of the machine's memory each).

    As many build at the same time as there are processors. Without a store nobody would find what
    they build, and the worker that measures builds as well.

    Raises OptionError for a TILEWRIGHT_FAULT that makes no sense.
    """
    check()
    if limits is None:
        limits = Limits(memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return IsolatedRunner(WORKER, limits=limits, builders=_builders())


def gpu_runner(
    number: int, device: str | None = None, beside: int = 1, limits: Limits = GPU_LIMITS
) -> IsolatedRunner:
    """A Runner for one GPU: one worker has the device for itself and measures, others build.

    device: its fingerprint, where tasks of several devices are about. beside: how many GPUs are
    tuned at the same time, which share the processors that build.

    Raises OptionError as `local_runner`.
    """
    check()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    name = str(number) if not shown else shown.split(",")[number].strip()
    return IsolatedRunner(
        WORKER, limits=limits, builders=-(-_builders() // beside),
        environment={**os.environ, "CUDA_VISIBLE_DEVICES": name}, device=device,
        origin=f"cuda:{number}",
    )  # fmt: skip


def _builders() -> int:
    return available_processors() if cache_directory() is not None else 0
