"""How unlike configs are, field by field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from .task import Config, Value

Array = npt.NDArray[np.float64]

FACTOR: Final = 4.0
"""Numbers differ in full where one is so many times the other, in half where they are close."""


def unlikeness(configs: Sequence[Config]) -> Array:
    """Between all configs, each a row and a column: every field that only one of two has counts 1,
    and so does one that differs, but for numbers near each other, which count down to a half."""
    out = np.zeros((len(configs), len(configs)))
    for name in dict.fromkeys(name for c in configs for name in c):
        there = np.array([name in c for c in configs])
        values = [c.get(name) for c in configs]
        both = np.logical_and.outer(there, there)
        out += np.where(both, _difference(values), np.not_equal.outer(there, there))
    return out


def _difference(values: Sequence[Value]) -> Array:
    names = [repr(v) for v in values]
    numbers = {name: k for k, name in enumerate(dict.fromkeys(names))}
    code = np.array([numbers[name] for name in names])
    unequal: Array = np.not_equal.outer(code, code).astype(np.float64)
    if not all(v is None or type(v) in (int, float) for v in values):
        return unequal
    logs = np.log1p(np.abs(np.array([float(v or 0) for v in values])))
    steps = np.abs(np.subtract.outer(logs, logs)) / math.log(FACTOR)
    part: Array = unequal * np.minimum(1.0, 0.5 + 0.5 * steps)
    return part
