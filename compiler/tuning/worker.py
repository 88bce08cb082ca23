"""The program of worker processes. Its arguments are what `serve` wants.

An `IsolatedRunner` (`autotune/isolation.py`) starts it by `start.py`; it is of no use to
people.
"""

from __future__ import annotations

import signal
import sys

from ...autotune.serving import Bench, Post, serve
from ..runtime.linux import end_with_parent
from .bench import ProblemBench
from .faults import check
from .problem import is_for_gpu


def bench(payload: str, post: Post) -> Bench:
    """The bench for a problem, by the device that it is for."""
    if not is_for_gpu(payload):
        return ProblemBench(payload, post)
    from .gpu_bench import GpuBench

    return GpuBench(payload, post)


if __name__ == "__main__":
    end_with_parent(signal.SIGHUP)
    check()
    serve(sys.argv[1:], bench)
