"""`tilewright doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..api.compile import compile
from ..codegen.cpu.target import CpuTarget, host
from ..codegen.cuda.target import best_arch
from ..errors import DriverVersionError, NoDeviceError, TargetError, TilewrightError
from ..graph.builder import GraphBuilder
from ..options import VERSION
from ..runtime.cuda_device import DeviceFacts, all_facts
from ..runtime.cuda_driver import driver
from ..runtime.threads import default_threads
from ..store import Store
from ..text import human_bytes, human_time
from .console import emit_json, show_table
from .models import add_json_argument

REQUIRED: Final = ("numpy", "llvmlite", "numba", "numba-cuda", "networkx", "onnx", "rich")
OPTIONAL: Final = {
    "onnxruntime": ("pip install 'tilewright[bench]'", "peer of `tilewright bench`"),
    "openvino": ("pip install 'tilewright[bench]'", "peer of `tilewright bench`"),
    "torch": ("pip install 'tilewright[bench]'", "peer of `tilewright bench`"),
    "ncnn": ("pip install 'tilewright[bench]'", "peer of `tilewright bench`"),
    "nvidia-nvjitlink": ("pip install 'tilewright[cuda]'", "assembles PTX"),
    "nvidia-nvvm": ("pip install 'tilewright[cuda]'", "trigonometry and float64 on GPUs"),
    "nvidia-cuda-nvdisasm": ("pip install 'tilewright[cuda]'", "shows the machine code of GPUs"),
}
_INSTALL: Final = "sudo apt-get install nvidia-driver-580 (Ubuntu), then start anew"
_FEATURES: Final = {
    "x86_64": ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl",
               "avx512bf16", "avx512fp16", "amx-tile"),
    "aarch64": ("neon", "dotprod", "fullfp16", "bf16", "sve", "sve2"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. state: "ok", "missing" (optional), "bad"; remedy: what helps."""

    topic: str
    state: str
    value: str
    remedy: str = ""


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="what this machine can do, and what is missing",
        description="Exit status 0 when models can be compiled and run here, 1 otherwise.",
    )
    add_json_argument(p)
    p.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    findings = examine()
    status = 1 if any(f.state == "bad" for f in findings) else 0
    if args.json:
        emit_json({"healthy": status == 0, "findings": [
            {"topic": f.topic, "state": f.state, "value": f.value, "remedy": f.remedy}
            for f in findings
        ]})  # fmt: skip
        return status
    rows = [(f.topic, f.state, f.value, f.remedy) for f in findings]
    show_table(rows, ("what", "state", "found", "what helps"))
    return status


def examine() -> tuple[Finding, ...]:
    """Everything, in the order of the report."""
    found = [Finding("tilewright", "ok", f"{VERSION}, Python {platform.python_version()}, "
                     f"{platform.system()} {platform.machine()}")]  # fmt: skip
    try:
        target = host()
        found += [_cpu(target), _vectors(target), _threads(), _self_test()]
    except TilewrightError as e:
        found.append(Finding("CPU target", "bad", str(e)))
    found += [_cache(), *map(_required, REQUIRED)]
    found += [_optional(n, remedy, use) for n, (remedy, use) in OPTIONAL.items()]
    found += [*_gpu(), _toolkit()]
    return tuple(found)


def _cpu(target: CpuTarget) -> Finding:
    enabled = {f[1:] for f in target.features.split(",") if f.startswith("+")}
    known = [f for f in _FEATURES.get(target.architecture, ()) if f in enabled]
    return Finding("CPU", "ok", f"{target.cpu} ({target.architecture}): {' '.join(known)}")


def _vectors(target: CpuTarget) -> Finding:
    return Finding("vectors", "ok", f"{target.vector_registers} registers of "
                   f"{target.vector_bits} bits, {target.lanes(4)} float32 each")  # fmt: skip


def _threads() -> Finding:
    chosen = " (TILEWRIGHT_THREADS)" if os.environ.get("TILEWRIGHT_THREADS") else ""
    return Finding("threads", "ok", f"{default_threads()}{chosen} of {os.cpu_count()} CPUs")


def _self_test() -> Finding:
    """Compile a small graph and compare it with numpy."""
    start = time.perf_counter()
    g = _small()
    data = np.linspace(-2, 2, 111, dtype=np.float32).reshape(3, 37)
    try:
        result = compile(g)(data)
    except TilewrightError as e:
        return Finding("native code", "bad", f"a small graph does not compile: {e}")
    if not np.allclose(result, np.maximum(data * 2 - 1, 0), rtol=1e-6):
        return Finding("native code", "bad", "a small graph computes wrong numbers",
                       "please report this with the output of `tilewright doctor`")  # fmt: skip
    return Finding("native code", "ok",
                   f"compiles and runs ({human_time(time.perf_counter() - start)})")  # fmt: skip


def _small() -> GraphBuilder:
    g = GraphBuilder("doctor")
    x = g.input("x", (3, 37))
    g.output(g.relu(x * 2.0 - 1.0))
    return g


def _cache() -> Finding:
    store = Store()
    if store.directory is None:
        return Finding("cache", "missing", "switched off: every process compiles again",
                       "unset TILEWRIGHT_CACHE")  # fmt: skip
    what = f"{len(store.entries())} entries, {human_bytes(store.size)} in {store.directory}"
    key = [("what", "written by tilewright doctor"), ("symbol", "doctor")]
    if not store.put(key, b"ok") or store.get(key) != b"ok":
        return Finding("cache", "missing", f"{what}: not usable", "point TILEWRIGHT_CACHE "
                       "at a directory of your own with space left")  # fmt: skip
    return Finding("cache", "ok", what)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _required(package: str) -> Finding:
    version = _version(package)
    if version is not None:
        return Finding(package, "ok", version)
    if package == "numba-cuda" and sys.platform == "darwin":
        return Finding(package, "missing", "no GPU target on macOS")
    only_gpu = package in ("numba", "numba-cuda", "networkx")
    return Finding(package, "missing" if only_gpu else "bad", "not installed",
                   f"pip install {package}")  # fmt: skip


def _optional(package: str, remedy: str, use: str) -> Finding:
    version = _version(package)
    if version is None:
        return Finding(package, "missing", use, remedy)
    return Finding(package, "ok", version)


def _gpu() -> list[Finding]:
    """NVIDIA's driver, its devices, and whether kernels run there."""
    try:
        library, devices = driver(), all_facts()
    except DriverVersionError as e:
        return [Finding("CUDA driver", "missing", str(e), _INSTALL)]
    except NoDeviceError as e:
        return [Finding("CUDA driver", "missing", str(e), f"only for GPUs: {_INSTALL}")]
    found = [Finding("CUDA driver", "ok", f"CUDA {library.version[0]}.{library.version[1]}")]
    found += [_device(k, d) for k, d in enumerate(devices)]
    return [*found, _gpu_test()]


def _device(number: int, d: DeviceFacts) -> Finding:
    value = f"{d.name}, {d.arch}, {human_bytes(d.memory_bytes)}"
    try:
        return Finding(f"cuda:{number}", "ok", f"{value}, code for {best_arch(d.capability)}")
    except TargetError as e:
        return Finding(f"cuda:{number}", "missing", f"{value}: {e}", "a newer GPU")


def _gpu_test() -> Finding:
    """Compile a small graph for the first device and compare it with numpy."""
    start = time.perf_counter()
    g, data = _small(), np.linspace(-2, 2, 111, dtype=np.float32).reshape(3, 37)
    try:
        exe: Any = compile(g, target="cuda")
        result = exe(data)
    except TilewrightError as e:
        return Finding("GPU code", "bad", f"a small graph does not run: {e}",
                       "please report this with the output of `tilewright doctor`")  # fmt: skip
    if not np.allclose(result, np.maximum(data * 2 - 1, 0), rtol=1e-6):
        return Finding("GPU code", "bad", "a small graph computes wrong numbers",
                       "please report this with the output of `tilewright doctor`")  # fmt: skip
    seconds = human_time(time.perf_counter() - start)
    how = exe.launching
    state, remedy = ("ok", "") if how == "one graph" else ("missing", "a newer driver may help")
    return Finding("GPU code", state, f"compiles and runs, launched as {how} ({seconds})", remedy)


def _toolkit() -> Finding:
    tools = [t for t in ("nvcc", "ptxas", "nvdisasm") if shutil.which(t)]
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if tools or home:
        return Finding("CUDA toolkit", "ok", " ".join([*tools, *([home] if home else [])]))
    return Finding("CUDA toolkit", "missing", "none on PATH; not needed",
                   "pip install 'tilewright[cuda]' has all that is used")  # fmt: skip
