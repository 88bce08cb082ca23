"""`import tilewright` is quick, and leaves the heavy libraries alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("networkx", "numba", "onnx", "onnxruntime", "torch")
MAX_SECONDS = 0.3
NUMPY_SECONDS = 0.07  # for numpy alone; a machine that takes longer gets that much more time

MEASURE = """
import sys, time
started = time.thread_time()
import {module}
spent = time.thread_time() - started
print(spent, *(name for name in {heavy} if name in sys.modules))
"""


def import_in_a_new_process(module: str, folder: Path, rounds: int) -> tuple[float, list[str]]:
    """Lowest processor seconds of `rounds` imports, and the heavy modules that came with it.

    Time of the importing thread, not of the clock: other tests running meanwhile count little.
    Byte code is cached, as it is after an install; the first round makes it.
    """
    code = MEASURE.format(module=module, heavy=HEAVY)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    best, pulled = float("inf"), []
    for _ in range(rounds):
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=folder, env=env, check=True, capture_output=True, text=True
        )
        out = done.stdout
        seconds, *pulled = out.split()
        best = min(best, float(seconds))
    return best, pulled


def over_budget(package: float, numpy: float) -> bool:
    return package >= MAX_SECONDS * max(1.0, numpy / NUMPY_SECONDS)


def test_importing_is_quick_and_pulls_nothing_heavy(tmp_path: Path) -> None:
    for _ in range(4):  # a neighbour on the same core slows everything for seconds at a time
        package, pulled = import_in_a_new_process("tilewright", tmp_path, rounds=5)
        assert pulled == []
        numpy, _ = import_in_a_new_process("numpy", tmp_path, rounds=3)
        if not over_budget(package, numpy):
            return
    pytest.fail(f"tilewright {package:.3f} s, numpy {numpy:.3f} s")


COMPILE = """
import sys
import tilewright as tw
g = tw.Graph()
g.output(g.softmax(g.input("x", (4, 4)), axis=1), "y")
tw.compile(g)
print(*(name for name in {heavy} if name in sys.modules))
"""


def test_compiling_pulls_in_nothing_heavy_either() -> None:
    """numpy imports numpy.ma, which takes 10 ms, for as little as np.unique."""
    code = COMPILE.format(heavy=(*HEAVY, "numpy.ma"))
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_a_slow_module_is_measured_and_a_heavy_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nend = time.thread_time() + 0.5\nwhile time.thread_time() < end: pass\n"
    )
    (tmp_path / "networkx.py").write_text("")
    (tmp_path / "heavy.py").write_text("import networkx\n")
    assert import_in_a_new_process("slow", tmp_path, rounds=1)[0] > 0.3
    assert import_in_a_new_process("heavy", tmp_path, rounds=1)[1] == ["networkx"]


@pytest.mark.parametrize(
    ("package", "numpy", "over"),
    [(0.29, 0.0, False), (0.31, 0.05, True), (0.45, 0.18, False), (0.85, 0.18, True)],
)
def test_a_slow_machine_gets_more_time(package: float, numpy: float, over: bool) -> None:
    assert over_budget(package, numpy) is over
