"""Compares kernels, run by the interpreter, with the operators' references in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from interpret import run_kernel
from tilewright.compiler.graph.builder import GraphBuilder
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Blob, Graph
from tilewright.compiler.kernels.device import Device
from tilewright.compiler.kernels.ir import Launch, Prepared
from tilewright.ops.types import Layout, TensorType
