"""How a worker process starts: python -P .../start.py, and what `worker.py` wants.

It runs the package that this file is part of, wherever that lies and however the process that tunes
has found it, and looks for nothing in the current folder (`-P`), where anybody's files may lie.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location(
        "tilewright", Path(__file__).parents[2] / "__init__.py"
    )
    assert spec is not None and spec.loader is not None
    package = sys.modules["tilewright"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    runpy.run_module("tilewright.compiler.tuning.worker", run_name="__main__", alter_sys=True)
