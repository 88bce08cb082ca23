"""Arrays on a device: both protocols, streams, what results are, and what is refused."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.errors import InputError
from tilewright.compiler.runtime.cuda_device import LEGACY, device
from tilewright.compiler.runtime.device_array import DeviceArray
from tilewright.compiler.runtime.device_views import handle_of

from . import devlib
from .devlib import InterfaceArray, PackArray, PooledArray, Taken
from .nets import A, rows, softmax, two
from .stub import Stub


@pytest.fixture
def exe(stub: Stub) -> Any:
    return stub.compile(rows())


def close(got: np.ndarray, x: np.ndarray) -> None:
    np.testing.assert_allclose(got, softmax(x), 1e-5, 1e-7)


def test_dlpack_in_and_out(stub: Stub, exe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    devlib.install(monkeypatch)
    x = PackArray(device(0), A)
    stub.clear()
    y = exe(x)
    assert isinstance(y, Taken)
    assert not any("HtoD" in line or "DtoD" in line for line in stub.log), "copied"
    assert not any("ynchronize" in line for line in stub.log), "waited"
    close(y.get(), A)


def test_a_taker_in_another_stream(
    stub: Stub, exe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    devlib.install(monkeypatch)
    with device(0) as d:
        s = d.stream()
    monkeypatch.setattr(Taken, "current", s.value)
    y = exe(PackArray(device(0), A))
    close(y.get(), A)  # which waits for that stream only
    stub.clear()
    del y
    assert stub.log == ["cuCtxSynchronize", "cuMemFreeAsync 640"], "it may still be in use there"


def test_times_of_an_input_that_is_still_being_written(stub: Stub, exe: Any) -> None:
    seen = []

    def look(name: bytes, number: int, dims: Any, params: Any, *rest: Any) -> int:
        for k, p in enumerate(stub.kernels[name.decode()][0].params):
            seen.extend([] if p.is_written else [stub._array(p, number, params[k]).copy()])
        return stub._run(name, number, dims, params, *rest)

    x = PackArray(device(0), A)
    stub.during = look
    exe.launch_seconds(x, rounds=1)
    np.testing.assert_array_equal(seen[0], A.ravel())


@pytest.mark.parametrize("kind", [PackArray, InterfaceArray])
def test_an_input_that_is_still_being_written(stub: Stub, exe: Any, kind: Any) -> None:
    """In another stream: the call waits for it, by either protocol."""
    with device(0) as d:
        s = d.stream()
    x = kind(device(0), A * 3, s.value)
    y = exe(x)
    assert isinstance(y, DeviceArray)
    close(y.numpy(), A * 3)


def test_what_a_producer_does_next_waits_for_the_call(stub: Stub, exe: Any) -> None:
    with device(0) as d:
        s = d.stream()
        x = InterfaceArray(device(0), A, s.value)
        y = exe(x)
        x.write(-A)
        d.call("cuStreamSynchronize", s.value)
    close(y.numpy(), A)


def test_a_stream_of_the_caller(stub: Stub, exe: Any) -> None:
    with device(0) as d:
        s = d.stream()
    x = PackArray(device(0), A, s.value)
    out = PackArray(device(0), np.zeros_like(A), s.value)
    got = exe(x, out=out, stream=s.value)
    assert got is out
    close(out.get(), A)  # which waits for that stream only
    with device(0):
        x.write(A * 2)
    exe.run({"x": x}, out={"y": out}, stream=s.value)
    close(out.get(), A * 2)


def test_calls_in_changing_streams_take_turns_in_one_arena(stub: Stub, exe: Any) -> None:
    with device(0) as d:
        kept = [d.stream() for _ in range(3)]
    streams = [s.value for s in kept]
    xs = [PackArray(device(0), A * k, s) for k, s in enumerate(streams)]
    outs = [PackArray(device(0), np.zeros_like(A), s) for s in streams]
    for x, out, s in zip(xs, outs, streams, strict=True):
        exe(x, out=out, stream=s)
    close(outs[2].get(), A * 2)  # waits for the last stream, whose call waits for those before
    for k in (0, 1):
        close(outs[k].content(), A * k)


def test_arrays_of_the_host_that_go_to_results_on_the_device(stub: Stub, exe: Any) -> None:
    """Such calls return early: the memory that they are copied through is not free yet."""
    outs = [PackArray(device(0), np.zeros_like(A)) for _ in range(3)]
    for k, out in enumerate(outs):
        x = A * k
        exe(x, out=out)
        x[...] = 99
    for k, out in enumerate(outs):
        close(out.get(), A * k)


def test_moving_arrays_change_the_graph_and_staying_ones_do_not(stub: Stub, exe: Any) -> None:
    xs = [PackArray(device(0), A * k) for k in range(3)]
    outs = [PackArray(device(0), np.zeros_like(A)) for _ in range(3)]
    exe(xs[0], out=outs[0])
    stub.clear()
    for x, out in zip(xs[1:], outs[1:], strict=True):
        exe(x, out=out)
    changes = [line.split()[0] for line in stub.log]
    assert changes.count("cuGraphExecKernelNodeSetParams") == 2
    assert changes.count("cuGraphLaunch") == 2 and "cuLaunchKernel" not in changes
    stub.clear()
    exe(xs[2], out=outs[2])
    assert [line.split()[0] for line in stub.log] == ["cuGraphLaunch"]
    for k in range(3):
        close(outs[k].get(), A * k)


def test_both_kinds_in_one_call(stub: Stub) -> None:
    exe = stub.compile(two())
    host = np.zeros((4,), np.int64)
    s, best = exe(PackArray(device(0), A), A * 2, out=(None, host))
    assert isinstance(s, DeviceArray) and best is host
    close(s.numpy(), A * 3)
    np.testing.assert_array_equal(host, A.argmax(1))
    s, best = exe(A, A)
    assert isinstance(s, np.ndarray) and isinstance(best, np.ndarray)
    close(s, A * 2)


def test_results_live_until_their_last_user_drops_them(stub: Stub, exe: Any) -> None:
    exe(A)
    before = stub.used()
    y = exe(PackArray(device(0), A))
    capsule = y.__dlpack__(stream=LEGACY)
    address = y.address
    del y
    exe(A)  # what the call before used is given back
    assert stub.used() == before + A.nbytes
    assert stub.library.stub_host(address, A.nbytes, 0)
    del capsule
    with device(0) as d:
        d.call("cuCtxSynchronize")
    assert stub.used() == before


def test_inputs_live_until_they_are_read(stub: Stub, exe: Any) -> None:
    xs = [PooledArray(device(0), A * k) for k in range(3)]
    for x in xs:
        x.get()
    del x
    outs = [exe(xs.pop(0)) for _ in range(3)]  # now nobody else holds them
    gc.collect()
    for k in (2, 0, 1):
        close(outs[k].numpy(), A * k)


def test_other_libraries_take_results(stub: Stub, exe: Any) -> None:
    y = exe(InterfaceArray(device(0), A))
    assert y.__dlpack_device__() == (2, 0) and y.device == 0 and y.shape == (4, 40)
    told = y.__cuda_array_interface__
    assert told["shape"] == (4, 40) and told["typestr"] == "<f4" and told["stream"] is None
    close(np.asarray(y), A)
    assert np.asarray(y, np.float64).dtype == np.float64
    assert "DeviceArray f32[4, 40] on device 0" in repr(y)
    with pytest.raises(BufferError, match="ambiguous"):
        y.__dlpack__(stream=0)
    with pytest.raises(BufferError, match="numpy"):
        y.__dlpack__(copy=True)
    again = exe(y)  # our own results are inputs, too
    close(again.numpy(), softmax(A).astype(np.float32))


def test_tensors_of_the_host(stub: Stub, exe: Any) -> None:
    torch = pytest.importorskip("torch")
    y = exe(torch.from_numpy(A))
    assert isinstance(y, np.ndarray)
    close(y, A)


def test_an_array_at_an_odd_place_is_copied(stub: Stub, exe: Any) -> None:
    """Kernels may read sixteen bytes at once."""
    x, out = PackArray(device(0), A, offset=4), PackArray(device(0), A * 0, offset=8)
    stub.clear()
    exe(x, out=out)
    assert sum("DtoD" in line for line in stub.log) == 2
    close(out.get(), A)


def test_a_donated_input_on_the_device(stub: Stub) -> None:
    exe = stub.compile(two(), donate=["a"])
    a, b = PackArray(device(0), A), PackArray(device(0), A)
    close(exe(a, b)[0].numpy(), A * 2)
    a = PackArray(device(0), A)
    close(exe(a, a)[0].numpy(), A * 2)  # read as b, too, so it is copied
    close(exe(A, A)[0], A * 2)
    read_only = InterfaceArray(device(0), A)
    read_only.read_only = True
    close(exe(read_only, A)[0].numpy(), A * 2)
    np.testing.assert_array_equal(read_only.get(), A)


def strided(x: InterfaceArray) -> InterfaceArray:
    x.strides = (4, 16)
    return x


def read_only(x: InterfaceArray) -> InterfaceArray:
    x.read_only = True
    return x


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda d: PackArray(d, A.astype(np.float64)), r"input 'x' must be f32, got f64\[4, 40\]"),
        (lambda d: InterfaceArray(d, A.astype(np.int32)), "must be f32, got int32"),
        (lambda d: PackArray(d, A[:3]), r"must have shape \[4, 40\], got \[3, 40\]"),
        (lambda d: strided(InterfaceArray(d, A)), r"contiguous in C order .*\[4, 16\]"),
        (lambda d: PackArray(device(1), A), "is on device 1, and the program on device 0"),
        (lambda d: InterfaceArray(device(1), A), "is on device 1, and the program on device 0"),
    ],
)
def test_inputs_that_do_not_fit(stub: Stub, make: Any, said: str) -> None:
    stub.start("9.0,9.0")
    exe = stub.compile(rows())
    with pytest.raises(InputError, match=said):
        exe(make(device(0)))
    close(exe(A), A)


def test_outputs_that_do_not_fit(stub: Stub, exe: Any) -> None:
    x = InterfaceArray(device(0), A)
    with pytest.raises(InputError, match="out for output 'y' is read-only"):
        exe(x, out=read_only(InterfaceArray(device(0), A)))
    with pytest.raises(InputError, match="shares memory with an input"):
        exe(x, out=x)
    with pytest.raises(InputError, match="out for output 'y' must be float32"):
        exe(x, out=A.astype(np.float64))


def test_streams_by_their_objects() -> None:
    class Torch:
        cuda_stream = 0

    class CuPy:
        ptr = 2

    class Core:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 77

    assert [handle_of(s) for s in (Torch(), CuPy(), Core(), 0, 5)] == [LEGACY, 2, 77, LEGACY, 5]
    with pytest.raises(InputError, match="expected a stream"):
        handle_of("fast")
