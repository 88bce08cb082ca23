"""What candidates have to compute, and how near they must come.

The truth is the operators' reference in float64. How far float32 may be off follows from the
arithmetic. A direct sum of n products of independent numbers of mean zero is off by sqrt(n / 2)
unit roundoffs of its own root mean square, as its partial sums grow to that; Winograd's algorithm
by what `Transforms.error` states. Errors are themselves distributed like sums, so that the largest
of millions is about five times as large as their root mean square, and the largest result at least
as many times as large as that of the results: the bound is that many roundoffs of the largest
result, and a few more for what else the group computes.

Groups that amplify errors (a difference of near values, say) exceed that without fault. There the
yardstick is the same group computed by the references in the model's own precision: a candidate may
be off a few times as much as that.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...autotune.outcome import Failure
from ...autotune.serving import Failed
from ...ops.types import DType, bf16, f32
from ..graph.bfloat16 import bits_of, values_of
from ..graph.evaluate import evaluate, narrow
from ..kernels.device import GpuDevice
from ..kernels.ir import Launch
from ..kernels.winograd_transforms import transforms
from .problem import Problem

Array = npt.NDArray[Any]

FEW: Final = 16.0
"""Unit roundoffs of the largest result that elementwise operators and transforms may add: their
functions err by up to six units each (`codegen/cpu/vector_math.py`)."""

PEAK: Final = 2.0
"""How much larger, relative to the largest result, the largest error may be than the ratio of the
root mean squares."""

TF32: Final = 2.0**-11
"""The unit roundoff of numbers with 10 bits behind the point."""

WINOGRAD: Final = ("winograd", "gpu_winograd")
"""Templates whose configs say the size of a tile, `m`."""

AS_PLAIN: Final = 4.0
"""How many times as far off as plain arithmetic of the same precision candidates may be."""


class Reference:
    """The results of a problem for one set of inputs."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.feeds = problem.feeds()
        self.truth = evaluate(problem.graph, self.feeds)

    def check(self, launch: Launch, results: Mapping[str, Array]) -> None:
        """Raise Failed where a candidate's results (logical arrays by blob) are wrong."""
        for name, got in results.items():
            kind = self.problem.graph.type(name).dtype
            if kind is bf16:
                got = values_of(got)
            wrong = (self._float(name, kind, got, launch) if kind.is_float
                     else self._exact(name, got))  # fmt: skip
            if wrong:
                raise Failed(Failure("wrong", f"output {name}: {wrong}"))

    def _exact(self, name: str, got: Array) -> str:
        """Integers must be equal, to the truth or, where rounding decides between two of them, to
        what the model's own precision gives."""
        differs = got != self.truth[name]
        if differs.any():
            differs &= got != self._plain[name]
        return f"{np.count_nonzero(differs)} of {got.size} elements differ" if differs.any() else ""

    def _float(self, name: str, kind: DType, got: Array, launch: Launch) -> str:
        truth = self.truth[name]
        finite = np.isfinite(got)
        if not _same_wild(got, _in(truth, kind), finite) and not _same_wild(
            got, self._plain[name], finite
        ):
            return f"{np.count_nonzero(~finite)} of {got.size} elements are not finite"
        finite &= np.isfinite(truth)
        scale = float(np.abs(truth[finite]).max(initial=0.0))
        worst = float(np.abs(got[finite] - truth[finite]).max(initial=0.0))
        allowed = scale * (roundoff(kind) * self.roundoffs(launch) + PEAK * self._factors(kind))
        if worst > allowed:
            allowed = max(allowed, AS_PLAIN * self._plain_error(name))
        if worst > allowed:
            return f"off by {worst:.3g} of up to {scale:.3g}, at most {allowed:.3g} is allowed"
        return ""

    def _factors(self, kind: DType) -> float:
        """The unit roundoff of factors of float32 that tensor cores may have rounded to tf32. Such
        errors of products are as independent as the products, and grow in a sum as it does."""
        reduced = self.problem.numerics == "reduced" and isinstance(self.problem.device, GpuDevice)
        return TF32 if reduced and kind is f32 else 0.0

    def roundoffs(self, launch: Launch) -> float:
        """How many unit roundoffs of the largest result a candidate may be off."""
        kernel, graph = launch.kernel, self.problem.graph
        results = sum(graph.type(n).size for n in graph.outputs)
        terms = max(1.0, kernel.flops / (2 * max(results, 1)))
        m = dict(kernel.config).get("m") if kernel.template in WINOGRAD else None
        if m is not None:
            return FEW + PEAK * transforms(m).error(max(1, round(terms / 9)))
        return FEW + PEAK * float(np.sqrt(terms / 2))

    @cached_property
    def _plain(self) -> Mapping[str, Array]:
        """The references' results in the model's own precision."""
        return evaluate(self.problem.graph, self.feeds, wide=False)

    def _plain_error(self, name: str) -> float:
        with np.errstate(all="ignore"):
            error = np.abs(self._plain[name] - self.truth[name])
        return float(error[np.isfinite(error)].max(initial=0.0))


def _in(truth: Array, kind: DType) -> Array:
    """The truth as an element type holds it."""
    return values_of(bits_of(truth)) if kind is bf16 else narrow(truth, kind)


def roundoff(kind: DType) -> float:
    """Half the distance from 1 to the next number."""
    return 2.0**-9 if kind is bf16 else float(np.finfo(kind.numpy).eps) / 2


def _same_wild(got: Array, want: Array, finite: Array) -> bool:
    """Whether infinities and NaNs are those that are wanted. finite: where `got` has none."""
    wild = ~finite
    return bool(np.array_equal(finite, np.isfinite(want))
                and np.array_equal(got[wild], want[wild], equal_nan=True))  # fmt: skip
