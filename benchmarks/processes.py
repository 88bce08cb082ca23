"""What a model costs a process that runs nothing else: seconds until the first result, and memory.

`measure` starts a process per contestant, twice over one cache directory: cold, then warm. Neither
time counts imports. Peak memory is the process's, after a few calls; what the imports took of it is
given beside it. The outputs of the first call come back for comparison.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

CALLS: Final = 3
TIMEOUT: Final = 600.0


def measure(
    contestant: str, model: Path, feeds: dict[str, Any], threads: int, form: Path | None = None
) -> tuple[dict[str, Any], list[Any]]:
    """{"cold": {...}, "warm": {...}} and the outputs, or {"error": reason} and none."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "feeds.npz"
        np.savez(stored, **{f"x{k}": a for k, a in enumerate(feeds.values())})
        task = {"contestant": contestant, "model": str(model), "names": list(feeds),
                "feeds": str(stored), "threads": threads, "form": str(form or ""),
                "outputs": f"{folder}/outputs.npz"}  # fmt: skip
        env = {**os.environ, "TILEWRIGHT_CACHE": f"{folder}/tilewright",
               "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}  # fmt: skip
        for kind in ("cold", "warm"):
            try:
                done = subprocess.run(
                    [sys.executable, __file__, json.dumps(task)], env=env, text=True,
                    capture_output=True, timeout=TIMEOUT, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return {"error": f"took more than {TIMEOUT:g} s"}, []
            if done.returncode:
                return {"error": (done.stderr.strip().splitlines() or ["it crashed"])[-1]}, []
            found[kind] = json.loads(done.stdout.splitlines()[-1])
        with np.load(task["outputs"]) as held:
            return found, [held[f"y{k}"] for k in range(len(held.files))]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """In the process that is measured."""
    name, threads, model = task["contestant"], task["threads"], Path(task["model"])
    stored = np.load(task["feeds"])
    feeds = {n: stored[f"x{k}"] for k, n in enumerate(task["names"])}
    importlib.import_module(name)
    if name == "torch":
        importlib.import_module("torch._inductor.compile_fx")
    before = _peak_bytes()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    if name == "tilewright":
        import tilewright

        exe = tilewright.compile(model, threads=threads)
        arrays = list(feeds.values())

        def call() -> Any:
            return exe(*arrays)
    else:
        peers = _peers()
        forms = {name: Path(task["form"])} if task["form"] else {}
        call = peers.prepare(name, peers.Setting(model, feeds, threads, forms)).run
    loaded = time.perf_counter()
    outputs = call()
    first = time.perf_counter()
    spent = _cpu_seconds() - cpu
    for _ in range(CALLS):
        call()
    found = {"load_seconds": loaded - wall, "first_result_seconds": first - wall,
             "cpu_seconds": spent, "peak_bytes": _peak_bytes(), "import_bytes": before}  # fmt: skip
    each = outputs if isinstance(outputs, list | tuple) else [outputs]
    np.savez(task["outputs"], **{f"y{k}": y for k, y in enumerate(each)})
    return found


def _peers() -> ModuleType:
    """The module alone, without the package around it, which would count as the peer's memory."""
    file = Path(__file__).parents[1] / "compiler" / "cli" / "peers.py"
    spec = importlib.util.spec_from_file_location("tilewright_peers", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _cpu_seconds() -> float:
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, whose))


def _peak_bytes() -> int:
    """Of this process image: what getrusage knows includes the parent's memory at the fork."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
