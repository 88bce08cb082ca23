"""Whole models through the real runtime, on a driver that runs kernels in the simulator."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import threading
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda.assemble import Assembled
from tilewright.compiler.errors import DeviceError, InputError
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.runtime import gpu_code
from tilewright.compiler.runtime.cuda_device import device

from .devlib import PackArray
from .nets import A, X, convnet, rows, softmax, two
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


@pytest.mark.parametrize("variable", ["TILEWRIGHT_CUDA_GRAPH=off", "TILEWRIGHT_POISON=1"])
def test_kernels_one_by_one(
    stub: Stub, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv(*variable.split("="))
    graph = convnet()
    exe = stub.compile(graph)
    for x in (X, -X):
        np.testing.assert_allclose(exe(x), evaluate(graph, {"x": x})["prob"], 1e-5, 1e-6)
    assert not any("cuGraph" in line for line in stub.log)
    assert exe.launching.startswith("one by one: ")


def test_poison_shows_a_plan_that_is_wrong(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is left out leaves NaN, not what was there before."""
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    exe = stub.compile(convnet())
    exe(X)
    context = exe.program()._state.idle[0]
    del context.launches[1]
    assert np.isnan(exe(X)).all()


def test_a_driver_that_captures_nothing(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    graph = convnet()
    exe = stub.compile(graph)
    stub.fail("cuGraphInstantiateWithFlags:1=1")
    with caplog.at_level(logging.WARNING, logger="tilewright"):
        got = exe(X)
    np.testing.assert_allclose(got, evaluate(graph, {"x": X})["prob"], 1e-5, 1e-6)
    assert "launched one by one" in caplog.text
    assert exe.launching == ("one by one: device 0 (Stub 9.0, sm_90): the driver refuses"
                             " cuGraphInstantiateWithFlags: CUDA_ERROR_INVALID_VALUE (1): invalid"
                             " argument")  # fmt: skip
    exe(X)


def test_arrays_that_do_not_fit(stub: Stub) -> None:
    exe = stub.compile(rows())
    with pytest.raises(InputError, match="must be float32, got float64"):
        exe(A.astype(np.float64))
    with pytest.raises(InputError, match=r"must have shape \[4, 40\], got \[3, 40\]"):
        exe(A[:3])
    with pytest.raises(InputError, match="2 arrays for 1 inputs"):
        exe(A, A)
    with pytest.raises(InputError, match="no input"):
        exe(x=A, z=A)
    with pytest.raises(InputError, match="must be a numpy array"):
        exe(A, out=(7,))
    out = np.zeros_like(A)
    assert exe(x=A[::-1], out=out) is out
    np.testing.assert_allclose(out, softmax(A[::-1]), 1e-5, 1e-7)


def test_nothing_is_left_after_the_end(stub: Stub) -> None:
    exes = [stub.compile(g) for g in (convnet(), rows())]
    exes[0](X)
    exes[1](A)
    assert stub.used() > 0 and stub.pinned > 0
    exes[0].close()
    exes[0].close()
    with pytest.raises(DeviceError, match="was closed"):
        exes[0](X)
    exes[1](A)
    del exes
    gc.collect()
    assert stub.used() == 0 and stub.pinned == 0


def test_the_end_waits_for_calls_that_returned_early(stub: Stub) -> None:
    exe = stub.compile(rows())
    out = PackArray(device(0), np.zeros_like(A))
    exe(A, out=out)
    del exe
    gc.collect()
    np.testing.assert_allclose(out.get(), softmax(A), 1e-5, 1e-7)


def test_closing_while_a_call_runs(stub: Stub) -> None:
    """The call ends as it would have; then the memory goes."""
    exe = stub.compile(rows())
    run, done = stub._run, []

    def closing(*args: Any) -> int:
        exe.close()
        return run(*args)

    stub.during = closing
    done.append(exe(A))
    np.testing.assert_allclose(done[0], softmax(A), 1e-5, 1e-7)
    assert stub.used() == 0


def test_calls_from_many_threads(stub: Stub) -> None:
    """Of two programs; each call has the result of its own input."""
    exes = [stub.compile(g) for g in (rows(), two())]
    wrong: list[Any] = []

    def work(k: int) -> None:
        for round_ in range(3):
            x = A * (k + round_)
            got = exes[0](x) if k % 2 else exes[1](x, x)[0]
            want = softmax(x if k % 2 else x * 2)
            if not np.allclose(got, want, 1e-5, 1e-6):
                wrong.append((k, round_))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert len(exes[0].program()._state.idle) <= 2


def test_a_memory_plan_that_does_not_fit_is_told_by_compile(stub: Stub) -> None:
    from tilewright.compiler.errors import DeviceMemoryError

    stub.start("9.0:2000")
    with pytest.raises(DeviceMemoryError, match=r"takes .* of which .* are free") as e:
        stub.compile(convnet())
    assert e.value.wanted_bytes > (e.value.free_bytes or 0) >= 0
    assert stub.used() == 0 or gc.collect() >= 0
    stub.compile(rows())


def test_profile(stub: Stub) -> None:
    exe = stub.compile(convnet())
    found = exe.profile(X, rounds=3)
    phases = [len(k.phases) for k in exe.kernels]
    np.testing.assert_allclose([r.seconds for r in found.rows], np.multiply(phases, 1e-5), 1e-3)
    assert found.limits.flops == 4 * 128 * 2e9 and "multiprocessors" in str(found)
    np.testing.assert_allclose(exe(X), evaluate(exe.graph, {"x": X})["prob"], 1e-5, 1e-6)


def fake_assembler(ptx: str, target: Any) -> Assembled:
    return Assembled(b"\x7fELF" + ptx.encode() + b"\0", {})


@pytest.mark.parametrize(
    ("device", "target", "loaded"),
    [("9.0", "cuda", "cubin"), ("8.9", "cuda", "cubin"), ("8.6", "cuda", "cubin"),
     ("12.0", "cuda", "ptx"), ("9.0", "cuda:sm_90", "cubin")],
)  # fmt: skip
def test_machine_code_where_it_runs_else_ptx(
    stub: Stub, device: str, target: str, loaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_code, "can_assemble", lambda: True)
    monkeypatch.setattr(gpu_code, "assembler", lambda: f"fake {device}")
    monkeypatch.setattr(gpu_code, "assembled", fake_assembler)
    stub.start(device)
    exe = stub.compile(rows(), target)
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)
    assert f"cuModuleLoadDataEx {loaded}" in stub.log


def test_machine_code_that_lost_something(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver makes better code of the PTX."""
    loss = "(C7504) Potential Performance Loss: 'setmaxnreg' ignored"
    monkeypatch.setattr(gpu_code, "can_assemble", lambda: True)
    monkeypatch.setattr(gpu_code, "assembler", lambda: "fake loss")
    monkeypatch.setattr(gpu_code, "assembled",
                        lambda ptx, target: Assembled(b"\x7fELF", {}, (loss,)))  # fmt: skip
    exe = stub.compile(rows())
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)
    assert "cuModuleLoadDataEx ptx" in stub.log


def test_machine_code_that_the_driver_does_not_know(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu_code, "can_assemble", lambda: True)
    monkeypatch.setattr(gpu_code, "assembler", lambda: "fake unknown")
    monkeypatch.setattr(gpu_code, "assembled", fake_assembler)
    stub.fail("cuModuleLoadDataEx:1=209")
    with caplog.at_level(logging.WARNING, logger="tilewright"):
        exe = stub.compile(rows())
    assert "translates its PTX" in caplog.text
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)


def in_child(exe: Any, pipe: Any) -> None:
    try:
        exe(A)
    except BaseException as e:
        pipe.send(f"{type(e).__name__}: {e}")
    del exe
    gc.collect()
    pipe.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_forked_child_is_told(stub: Stub) -> None:
    exe = stub.compile(rows())
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(exe, theirs))
    child.start()
    assert ours.poll(30)
    assert "ForkedError: device 0" in (said := ours.recv()) and "'spawn'" in said
    child.join(30)
    assert child.exitcode == 0
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)


def test_tensors_by_descriptors(stub: Stub) -> None:
    """Products of half precision on Hopper: descriptors, dynamic shared memory. Arrays that move
    have new descriptors."""
    r = np.random.default_rng(3)
    g = tw.Graph("product")
    a, b = g.input("a", (70, 64), dtype="f16"), g.input("b", (64, 40), dtype="f16")
    g.output(g.relu(g.matmul(a, b)), "y")
    exe = stub.compile(g.build())
    (kernel,) = exe.kernels
    assert kernel.template == "gpu_wgmma"
    x, y = (r.standard_normal(s).astype(np.float16) for s in ((70, 64), (64, 40)))
    for k in (1, -1):
        want = np.maximum(k * x.astype(np.float64) @ y, 0)
        got = exe(PackArray(device(0), k * x), PackArray(device(0), y)).numpy()
        np.testing.assert_allclose(got, want, 5e-3, 1e-2)
