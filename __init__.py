"""Tilewright: a JIT-compiling graph compiler.

    import tilewright as tw
    exe = tw.compile("model.onnx")
    y = exe(x)
"""

from __future__ import annotations

from tilewright.compiler.api.compile import compile
from tilewright.compiler.api.executable import Executable
from tilewright.compiler.errors import TilewrightError
from tilewright.compiler.graph.builder import GraphBuilder as Graph

__version__ = "0.1.0"
__all__ = ["Executable", "Graph", "TilewrightError", "compile"]
