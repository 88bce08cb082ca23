"""A process of the benchmark for GPUs without a GPU: the stub driver runs kernels in the simulator,
PyTorch computes on the CPU under the names of its CUDA functions, and problems are tiny.

Called as `part.py` is. STAND_IN_DRIVER is the stub driver's library.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks" / "gpu"), str(ROOT / "benchmarks"), str(ROOT)]


class Mark:
    """A torch.cuda.Event that lies 2 microseconds behind the one before."""

    now = 0.0

    def record(self) -> None:
        Mark.now += 2e-3
        self.at = Mark.now

    def elapsed_time(self, later: Mark) -> float:
        return later.at - self.at


def torch_on_cpu(torch: Any) -> None:
    """CUDA is the CPU from now on."""

    def here(make: Any) -> Any:
        return lambda *a, device=None, **more: make(*a, **more)

    for name in ("randn", "full", "empty"):
        setattr(torch, name, here(getattr(torch, name)))
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self: self
    cuda = torch.cuda
    cuda.is_available = lambda: True
    cuda.synchronize = cuda._sleep = lambda *a: None
    cuda.Event = lambda enable_timing: Mark()
    cuda.Stream = lambda: type("Stream", (), {"wait_stream": lambda self, other: None})()
    cuda.current_stream = cuda.Stream
    cuda.stream = cuda.graph = lambda other: contextlib.nullcontext()
    cuda.CUDAGraph = lambda: type("Graph", (), {"replay": lambda self: None})()
    torch.compile = lambda f, **how: f


class OnHost:
    """An executable that is handed PyTorch's arrays, which it reads and writes where they are."""

    def __init__(self, exe: Any) -> None:
        self._exe = exe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exe, name)

    def __call__(self, *arrays: Any, out: Any = None) -> Any:
        into = [x.numpy() for x in out] if isinstance(out, list) else out.numpy()
        return self._exe(*(x.numpy() for x in arrays), out=into)

    def launch_seconds(self, *arrays: Any, rounds: int) -> list[float]:
        return list(self._exe.launch_seconds(*(x.numpy() for x in arrays), rounds=1))


def main() -> None:
    from tests.compiler.runtime.cuda.stub import Stub
    from tilewright.compiler.runtime import gpu_code

    library = Path(os.environ["STAND_IN_DRIVER"])
    stub = Stub(library, pytest.MonkeyPatch()).start()
    load = gpu_code.load

    def noted(kernels: Any, *args: Any, **more: Any) -> Any:
        kernels = list(kernels)
        for k in kernels:
            stub.knows_kernel(k)
        return load(kernels, *args, **more)

    gpu_code.load = noted  # ahead of all that take it from there
    import torch

    torch_on_cpu(torch)
    smaller()
    import part

    part.main()


def smaller() -> None:
    """What a simulator gets through."""
    import beside
    import calibration
    import families
    import lab
    import ladder
    import networks

    import tilewright as tw
    from tilewright.compiler.tuning import gpu_bench

    def compiled(*args: Any, **more: Any) -> OnHost:
        return OnHost(tw.compile(*args, **more))

    names = ladder.names()
    ladder.names = lambda: names[: int(os.environ.get("STAND_IN_RUNGS", len(names)))]
    check, measured = families.check, calibration.measured
    gpu_bench.CHECKS = gpu_bench.MOST_RUNS = 1
    lab.FLUSHED, lab.SAMPLES, lab.CALLS = 64, 2, 1
    families.check = lambda name, seed, first: check(name, seed, first, True, 1, 1)
    calibration.RUNS = 1
    calibration.measured = lambda: measured(2.0**-13)
    beside.SETS = {
        "products": (beside.matmul("f32", 5, 7, 9), beside.matmul("f32", 8, 8, 8, True)),
        "convolutions": (beside.conv("f32", 1, 2, 3, 4, 3),),
        "moving": (beside.moved("added", "f32", 3, 40),),
        "attention": (beside.attention("f32", 1, 1, 4, 8),),
    }
    timed, copying, launching = beside.timed, beside.copying, networks.launching
    beside.timed = lambda chosen, lab_of: timed(chosen, lab_of, compiled)
    beside.copying = lambda lab_: copying(lab_, (1 << 12,))
    networks.launching = lambda lab_: launching(lab_, compiled, (1, 2), 8)
    networks.SAMPLES, networks.SAMPLE_SECONDS = 2, 1e-9
    compared = networks.compared
    networks.compared = lambda *args: compared(*args, compile_=compiled)
    networks.of_precision = lambda name, batch, precision: model(name, batch)
    networks.models.sample = lambda name, batch=1: {"x": np.ones((batch, 2, 3, 3), np.float32)}
    networks.models.path = lambda name, batch=1: model(name, batch)


def model(name: str, batch: int) -> Path:
    """A network of one convolution."""
    import onnx

    file = Path(os.environ["TILEWRIGHT_CACHE"]) / f"{name}{batch}.onnx"
    h = onnx.helper
    values = [h.make_tensor_value_info("x", 1, (batch, 2, 3, 3)),
              h.make_tensor_value_info("y", 1, (batch, 2, 3, 3))]  # fmt: skip
    w = np.random.default_rng(1).standard_normal((2, 2, 3, 3)).astype(np.float32)
    nodes = [h.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
             h.make_node("Relu", ["c"], ["y"])]  # fmt: skip
    graph = h.make_graph(nodes, "g", values[:1], values[1:], [onnx.numpy_helper.from_array(w, "w")])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9), file)
    return file


if __name__ == "__main__":
    main()
