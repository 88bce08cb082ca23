"""Tilewright: a JIT-compiling graph compiler.

import tilewright as tw
exe = tw.compile("model.onnx")
y = exe(x)
"""

from __future__ import annotations

from tilewright.compiler.api.bisect import bisect
from tilewright.compiler.api.compile import compile
from tilewright.compiler.api.executable import Executable
from tilewright.compiler.api.load import load
from tilewright.compiler.api.tune import tune
from tilewright.compiler.errors import TilewrightError
from tilewright.compiler.graph.builder import GraphBuilder as Graph
from tilewright.compiler.options import VERSION as __version__
from tilewright.ops.operator import operator

__all__ = ["Executable", "Graph", "TilewrightError", "__version__", "bisect", "compile", "load",
           "operator", "tune"]  # fmt: skip
