"""What a worker of a farm does (`autotune/farm.py`): two functions from text to text.

The workers of the cluster need this package, in the same version as whoever tunes.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, Final

from ...autotune.farm import answer
from ...autotune.isolation import IsolatedRunner
from ..codegen.cpu.target import CpuTarget, host
from ..kernels.device import Device
from ..kernels.select import TEMPLATES
from ..options import VERSION
from ..runtime.linux import available_processors
from .faults import VARIABLE
from .fingerprint import fingerprint, kernel_device
from .local import local_runner

_lock: Final = threading.Lock()  # candidates that run at the same time would disturb each other


def describe(_: str = "") -> str:
    """What this machine is, in JSON."""
    return json.dumps(description(host(), kernel_device(host(), available_processors())))


def measure(message: str) -> str:
    """Answer a request of a farm on this machine."""
    with _lock:
        return answer(message, _runner())


def description(target: CpuTarget, device: Device) -> dict[str, Any]:
    """What decides whether a machine can run candidates for another one: the same templates, and
    what problems say of the device that they are for (`problem.py`)."""
    return {
        "device": fingerprint(target),
        "tilewright": VERSION,
        "templates": {t.name: t.version for t in TEMPLATES},
        "faults": os.environ.get(VARIABLE, ""),
        **asdict(device),
    }


def objection(
    found: Mapping[str, Any] | str, target: CpuTarget, device: Device
) -> str | None:  # fmt: skip
    """Why a machine that describes itself like this cannot run candidates for `target`, used as
    `device`; None if it can. It may have more processors than `device` has threads."""
    if isinstance(found, str):
        return f"it cannot say what it is: {found}"
    for field, wanted in description(target, device).items():
        given = found.get(field)
        enough = field == "threads" and isinstance(given, int) and given >= wanted
        if field != "device" and given != wanted and not enough:
            return f"its {field} is {given!r}, here it is {wanted!r}"
    return None if isinstance(found.get("device"), str) else "it names no device"


@cache
def _runner() -> IsolatedRunner:
    runner = local_runner()
    atexit.register(runner.close)
    return runner
