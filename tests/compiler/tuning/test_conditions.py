"""What is around a measurement: cold caches, the probe, the machine's counters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tilewright.compiler.codegen.cpu.assemble import build_object
from tilewright.compiler.codegen.cpu.target import NAMED
from tilewright.compiler.runtime.linux import busy_seconds
from tilewright.compiler.tuning import cold
from tilewright.compiler.tuning.probe import _Probe, probe_text


@pytest.mark.parametrize("nbytes", [0, 1, 64, 1000, 1 << 20])
def test_flushing_changes_no_memory(nbytes: int) -> None:
    a = np.arange(max(nbytes, 1), dtype=np.uint8)
    before = a.copy()
    for how in (cold.flush(), cold._Evict()):
        how(a.ctypes.data, nbytes)
        np.testing.assert_array_equal(a, before)


@pytest.mark.parametrize("name", NAMED)
def test_native_parts_build_for_every_target(name: str) -> None:
    target = NAMED[name]
    assert build_object(probe_text(target.lanes(4)), target)
    if target.architecture == "x86_64":
        assert build_object(cold.FLUSH, target)


def test_strain_is_of_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of three runs, compared with the best of all."""
    made = _Probe()
    assert made.strain() >= 1
    times = iter([9e-9, 4e-9, 7e-9, 2e-9, 6e-9, 8e-9, 3e-9, 5e-9, 4e-9])
    monkeypatch.setattr(_Probe, "seconds", lambda self: next(times))
    assert made.strain() == 1  # nothing was ever as fast
    assert made.strain() == 1
    assert made.strain() == 1.5


def test_busy_seconds(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 4000 50 6 7 8 0 0\ncpu0 1 2 3\n")
    tick = os.sysconf("SC_CLK_TCK")
    assert busy_seconds(stat) == (100 + 20 + 30 + 6 + 7 + 8) / tick
    stat.write_text("cpu  100 twenty\n")
    assert busy_seconds(stat) is None
    assert busy_seconds(tmp_path / "none") is None


ORPHAN = """
import os, signal, sys, time
from tilewright.compiler.runtime.linux import end_with_parent
child = os.fork()
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
if not child:
    end_with_parent(signal.SIGHUP)
    os.write(1, b"%d\\n" % os.getpid())
    until = time.monotonic() + 20
    while time.monotonic() < until:
        pass
    os._exit(1)
time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a feature of Linux")
def test_a_busy_process_ends_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        start = time.monotonic()
        assert parent.stdout.read() == b""  # ends when nobody is left who could write to it
        assert time.monotonic() - start < 10
