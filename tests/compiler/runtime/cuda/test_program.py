"""Whole models through the real runtime, on a driver that runs kernels in the simulator."""

from __future__ import annotations

import numpy as np

from tilewright.compiler.graph.evaluate import evaluate

from .nets import X, convnet
from .stub import Stub


def test_a_model_computes_what_the_reference_does(stub: Stub) -> None:
    graph = convnet()
    exe = stub.compile(graph)
    for x in (X, -X, X[:, ::-1]):
        want = evaluate(graph, {"x": x})["prob"]
        got = exe(x)
        assert type(got) is np.ndarray and got.dtype == np.float32
        np.testing.assert_allclose(got, want, 1e-5, 1e-6)
        np.testing.assert_allclose(exe.run({"x": x})["prob"], want, 1e-5, 1e-6)
    assert exe.launching == "one graph"


def test_a_call_is_one_graph_launch(stub: Stub) -> None:
    exe = stub.compile(convnet())
    exe(X)
    stub.clear()
    exe(X)
    assert stub.log == ["cuMemcpyHtoDAsync 432", "cuGraphLaunch", "cuMemcpyDtoHAsync 20",
                        "cuEventSynchronize"]  # fmt: skip
    assert len(stub.ran) == sum(len(k.phases) for k in exe.kernels) > 2
