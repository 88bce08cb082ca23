"""The native side of calls, as its users hold it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import ctypes, gc
from tilewright.compiler.runtime import driver
made = driver._Driver()
run, enter = made.run, made.enter
del made
gc.collect()
frame = driver.Frame(None, None, None, None, 0)
run(ctypes.addressof(frame))
entry = driver.Entry(frame=ctypes.addressof(frame))
assert enter is None or enter(ctypes.addressof(entry), id(())) == 1
"""


def test_functions_keep_their_code() -> None:
    """Of two drivers that two threads make at once, one is forgotten, but its program is called."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
