"""What processes do that begin with the stub driver and have no test in them, such as workers: they
give their kernels to the simulator as well.

The stub runs this file where STUB_CUDA_PROCESS names it. With STUB_LOG, every candidate that is
made ready to run leaves a line in that file: the process, the problem, the candidate.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tilewright.autotune.task import Candidate
from tilewright.compiler.tuning import gpu_bench
from tilewright.compiler.tuning.problem import Problem

ROOT = str(Path(__file__).parents[4])
sys.path.insert(0, ROOT)
from tests.compiler.runtime.cuda.stub import Stub  # noqa: E402

sys.path.remove(ROOT)

made = Stub(Path(os.environ["TILEWRIGHT_CUDA_DRIVER"]), pytest.MonkeyPatch())
made.library.stub_set_callback(made._callback)
instantiate = Problem.instantiate


def noted(self: Problem, candidate: Candidate) -> Any:
    """Let the stub know the kernel."""
    launch = instantiate(self, candidate)
    made.knows_kernel(launch.kernel)
    log = os.environ.get("STUB_LOG")
    if log:
        with open(log, "a") as lines:
            digest = hashlib.sha256(self.text.encode()).hexdigest()[:8]
            lines.write(f"{os.getpid()} {digest} {candidate.template}{candidate.text}\n")
    return launch


Problem.instantiate = noted  # type: ignore[method-assign]
# The simulator takes a while.
gpu_bench.CHECKS = gpu_bench.MOST_CHECKS = int(os.environ.get("STUB_CHECKS", "2"))
gpu_bench.MOST_RUNS = 2
