"""Which device a measurement was taken on, as canonical text.

A CPU is its vendor, family, model and stepping, what of it generated code uses, and its caches; a
GPU its name, architecture and memory, and the major version of its driver.

Two devices with one text are taken for the same; measurements of another one of the same model are
as good as one's own, those of other models say where to look first.
"""

from __future__ import annotations

import json
import platform
from functools import cache
from pathlib import Path
from typing import Any, Final

from ...autotune.task import canonical
from ..codegen.cpu.target import CpuTarget
from ..kernels.device import Device
from ..runtime.cuda_device import DeviceFacts
from ..runtime.linux import first_cache_ways

_VECTOR: Final = (
    "amx", "avx", "bf16", "dotprod", "f16c", "fma", "fullfp16", "i8mm", "neon", "sse4", "sve",
)  # fmt: skip
"""How the names of features begin that decide how fast kernels can be."""

_MODEL: Final = ("kind", "architecture", "vendor", "family", "model", "cpu", "features")
_FIELDS: Final = {
    "vendor": ("vendor_id", "CPU implementer"),
    "family": ("cpu family", "CPU architecture"),
    "model": ("model", "CPU part"),
    "stepping": ("stepping", "CPU revision"),
    "name": ("model name",),
}


@cache
def fingerprint(target: CpuTarget, root: Path = Path("/")) -> str:
    """This machine, used as `target`, as JSON. root: where its files /proc and /sys lie."""
    features = (f[1:] for f in target.features.split(",") if f.startswith("+"))
    found: dict[str, Any] = {
        "kind": "cpu",
        "architecture": target.architecture,
        "cpu": target.cpu,
        "features": sorted(f for f in features if f.startswith(_VECTOR)),
        "caches": _caches(root),
        **_identity(root),
    }
    return canonical(found)


def gpu_fingerprint(facts: DeviceFacts, driver: tuple[int, int]) -> str:
    """A GPU as JSON: its name and architecture, how much memory it has, in whole GiB, and the major
    version of the driver's CUDA, which changes the machine code of PTX."""
    memory = f"{round(facts.memory_bytes / 2**30)} GiB"
    return canonical({"kind": "gpu", "architecture": facts.arch, "model": facts.name,
                      "memory": memory, "driver": f"CUDA {driver[0]}"})  # fmt: skip


def kernel_device(target: CpuTarget, threads: int) -> Device:
    """This machine, used as `target` with so many threads, as kernel templates see it."""
    return Device(target.vector_bits // 8, target.tile_registers, threads,
                  l1_ways=first_cache_ways(), halves=int(target.halves_vectors))  # fmt: skip


def same_model(a: str, b: str) -> bool:
    """Whether two fingerprints are of devices of one model, as code sees them: steppings and the
    sizes of shared caches may differ. False for text that is no fingerprint."""
    one, other = _read(a), _read(b)
    return bool(one) and all(one.get(f) == other.get(f) for f in _MODEL)


def label(text: str) -> str:
    """A fingerprint for people: "AMD EPYC (AuthenticAMD 25/17/1, znver4)"."""
    found = _read(text)
    if not found:
        return "an unknown device"
    if found.get("kind") == "gpu":
        rest = ", ".join(str(found.get(f)) for f in ("architecture", "memory", "driver"))
        return f"{found.get('model')} ({rest})"
    numbers = "/".join(str(found.get(f)) for f in ("family", "model", "stepping") if found.get(f))
    inside = " ".join(x for x in (str(found.get("vendor") or ""), numbers) if x)
    rest = ", ".join(x for x in (inside, str(found.get("cpu") or "")) if x)
    return f"{found.get('name') or found.get('architecture')} ({rest})"


def _read(text: str) -> dict[str, Any]:
    """The fields that are text or lists of texts, as those of fingerprints are. Text from somebody
    else's file may be anything, nested a thousand times for example."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if _plain(value)}


def _plain(value: object) -> bool:
    return all(isinstance(x, str) for x in (value if isinstance(value, list) else [value]))


def _identity(root: Path) -> dict[str, str]:
    """Vendor, family, model, stepping and name of the first processor, those that are told."""
    told: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            told.setdefault(name.strip(), value.strip())
    found = {
        field: next((told[n] for n in names if n in told), "") for field, names in _FIELDS.items()
    }
    if not any(found.values()):
        found["name"] = platform.processor() or platform.machine()
    return found


def _caches(root: Path) -> list[str]:
    """Level, kind and size of every cache of the first processor, such as "L1 Data 32K"."""
    found = []
    for entry in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_text(entry / f).strip() for f in ("level", "type", "size"))
        if kind != "Instruction" and size:
            found.append(f"L{level} {kind} {size}")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
