"""What a worker of a farm does (`autotune/farm.py`): two functions from text to text.

The workers of the cluster need this package, in the same version as whoever tunes.
"""

from __future__ import annotations

import atexit
import json
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from ...autotune.farm import answer
from ...autotune.isolation import IsolatedRunner
from ..codegen.cpu.target import CpuTarget, host
from ..kernels.select import TEMPLATES
from ..options import VERSION
from .fingerprint import fingerprint
from .local import local_runner

_lock: Final = threading.Lock()  # candidates that run at the same time would disturb each other


def describe(_: str = "") -> str:
    """What this machine is, in JSON."""
    return json.dumps(description(host()))


def measure(message: str) -> str:
    """Answer a request of a farm on this machine."""
    with _lock:
        return answer(message, _runner())


def description(target: CpuTarget) -> dict[str, Any]:
    """What decides whether a machine can run candidates for another one: the same templates, and
    registers as wide and as many."""
    return {
        "device": fingerprint(target),
        "tilewright": VERSION,
        "templates": {t.name: t.version for t in TEMPLATES},
        "vector_bits": target.vector_bits,
        "registers": target.tile_registers,
    }


def objection(found: Mapping[str, Any] | str, target: CpuTarget) -> str | None:
    """Why a machine that describes itself like this cannot run candidates for `target`; None if it
    can."""
    if isinstance(found, str):
        return f"it cannot say what it is: {found}"
    for field, wanted in description(target).items():
        if field != "device" and found.get(field) != wanted:
            return f"its {field} is {found.get(field)!r}, here it is {wanted!r}"
    return None if isinstance(found.get("device"), str) else "it names no device"


@cache
def _runner() -> IsolatedRunner:
    runner = local_runner()
    atexit.register(runner.close)
    return runner
