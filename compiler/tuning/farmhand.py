"""What a worker of a farm does (`autotune/farm.py`): two functions from text to text.

A worker runs candidates on its processors and on the first GPU that it sees, in worker processes
of its own. The workers of the cluster need this package, in the same version as whoever tunes.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, Final

from ...autotune.farm import answer
from ...autotune.isolation import IsolatedRunner
from ...autotune.outcome import Outcome
from ...autotune.runner import Request
from ...autotune.task import Task
from ..codegen.cpu.target import host
from ..codegen.cuda.target import CudaTarget, best_arch
from ..errors import TilewrightError
from ..kernels import gpu_templates  # noqa: F401  from now on GPUs have templates
from ..kernels.device import Device, GpuDevice, gpu_device
from ..kernels.select import templates_for
from ..options import VERSION
from ..runtime.cuda_device import all_facts, unique_name
from ..runtime.cuda_driver import driver
from ..runtime.linux import available_processors
from .faults import VARIABLE
from .fingerprint import fingerprint, gpu_fingerprint, kernel_device
from .local import gpu_runner, local_runner
from .problem import is_for_gpu

GPU: Final = "gpu"
CPU: Final = "cpu"
_lock: Final = threading.Lock()  # candidates that run at the same time would disturb each other


def describe(_: str = "") -> str:
    """What this machine is, in JSON: its processors and its first GPU, or why there is none."""
    here = kernel_device(host(), available_processors())
    return json.dumps({CPU: description(fingerprint(host()), here), GPU: _first_gpu()})


def measure(message: str) -> str:
    """Answer a request of a farm on this machine."""
    with _lock:
        return answer(message, _Here())


def description(place: str, device: Device) -> dict[str, Any]:
    """What decides whether a machine can run candidates for another one: the same templates, and
    what problems say of the device that they are for (`problem.py`). place: its fingerprint."""
    return {
        "device": place,
        "tilewright": VERSION,
        "templates": {t.name: t.version for t in templates_for(device)},
        "faults": os.environ.get(VARIABLE, ""),
        **asdict(device),
    }


def offer(told: Mapping[str, Any] | str, device: Device) -> Mapping[str, Any] | str:
    """Of what a machine says of itself, that which is about devices like this one; text where there
    is no such thing."""
    if isinstance(told, str):
        return told
    found = told.get(GPU if isinstance(device, GpuDevice) else CPU, "its description is another's")
    return found if isinstance(found, dict) else str(found)


def objection(offered: Mapping[str, Any] | str, device: Device) -> str | None:
    """Why a machine that offers this cannot run candidates for `device`; None if it can. It may
    have more processors than `device` has threads."""
    if isinstance(offered, str):
        return f"it cannot say what it is: {offered}"
    for field, wanted in description("", device).items():
        given = offered.get(field)
        enough = field == "threads" and isinstance(given, int) and given >= wanted
        if field != "device" and given != wanted and not enough:
            return f"its {field} is {given!r}, here it is {wanted!r}"
    return None if isinstance(offered.get("device"), str) else "it names no device"


def _first_gpu() -> dict[str, Any] | str:
    """What the first GPU is; why there is none. `name`: the same for whoever sees that device;
    `others`: those that are seen and not used, which want workers of their own."""
    try:
        there = all_facts()
        first = there[0]
        capability = CudaTarget(best_arch(first.capability)).capability
        name, *others = (unique_name(k) for k in range(len(there)))
    except TilewrightError as e:
        return str(e)
    place = gpu_fingerprint(first, driver().version)
    return {**description(place, gpu_device(capability)), "name": name, "others": others}


class _Here:
    """The Runner for a task's kind of device."""

    def run(
        self, task: Task, request: Request, deadline: float
    ) -> Iterator[tuple[int, Outcome]]:  # fmt: skip
        """As `Runner.run`."""
        return _runner(is_for_gpu(task.payload)).run(task, request, deadline)

    def stop(self) -> None:
        """A request that has begun is answered."""

    def close(self) -> None:
        """Workers stay for the next request."""


@cache
def _runner(on_gpu: bool) -> IsolatedRunner:
    runner = gpu_runner(0) if on_gpu else local_runner()
    atexit.register(runner.close)
    return runner
