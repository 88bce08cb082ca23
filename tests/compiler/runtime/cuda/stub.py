"""The stub driver (`stub_driver.c`) as tests use it: kernels run in the simulator."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda.entry import DescribedTensor, Entry
from tilewright.compiler.codegen.cuda.operations import stored_as
from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.codegen.cuda.target import ALIGNMENT
from tilewright.compiler.codegen.cuda.tensor_maps import encoding
from tilewright.compiler.kernels.ir import Buffer, Kernel
from tilewright.compiler.runtime import cuda_device, cuda_driver, gpu_code

from ...codegen.cuda.simulate import SimError, run_source

_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t), ctypes.c_int,
)  # fmt: skip
FAULT = 719  # CUDA_ERROR_LAUNCH_FAILED


def build_library(folder: Path) -> Path:
    """Compile the stub. Skips the test where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: the stub driver is not there")
    made = folder / "libcuda.so.1"
    source = Path(__file__).with_name("stub_driver.c")
    command = [compiler, "-std=gnu11", "-O1", "-shared", "-fPIC", "-o", str(made), str(source)]
    subprocess.run([*command, "-lpthread"], check=True)
    return made


class Stub:
    """The driver, and what runs its kernels."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self._patch = path, monkeypatch
        self.library = ctypes.CDLL(str(path))
        for name in ("stub_log", "stub_problems"):
            getattr(self.library, name).restype = ctypes.c_char_p
        for name in ("stub_used", "stub_pinned"):
            getattr(self.library, name).restype = ctypes.c_size_t
        self.library.stub_host.restype = ctypes.c_void_p
        self.library.stub_host.argtypes = [ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int]
        self.kernels: dict[str, tuple[Kernel, str, Entry]] = {}
        self.errors: list[Exception] = []
        self.ran: list[str] = []
        self.during: Any = None  # called instead of the next kernel
        self._callback = _CALLBACK(self._called)
        monkeypatch.setenv("TILEWRIGHT_CUDA_DRIVER", str(path))
        monkeypatch.setattr(gpu_code, "can_assemble", lambda: False)

    def start(self, devices: str = "9.0", version: int = 12040, fail: str = "") -> Stub:
        """Begin anew with these devices ("9.0:1048576,8.0"), that driver, and these failures."""
        if cuda_device._known:
            gc.collect()
        for d in cuda_device._known.values():
            d.lost = "of another test"  # so that nothing of the state before comes back
        for name, value in (("DEVICES", devices), ("VERSION", str(version)), ("FAIL", fail)):
            self._patch.setenv(f"STUB_CUDA_{name}", value)
        cuda_driver.driver.cache_clear()
        cuda_device._known.clear()
        self.library.stub_reset()
        self.library.stub_set_callback(self._callback)
        self.errors.clear()
        return self

    def compile(self, graph: Any, target: str = "cuda", **options: Any) -> Any:
        """A program whose kernels the stub can run."""
        exe = tw.compile(graph, target=target, **options)
        self.knows(exe)
        return exe

    def knows(self, exe: Any) -> None:
        """Run the kernels of this program by their source."""
        for launch in exe._compilation.launches:
            self.knows_kernel(launch.kernel)

    def knows_kernel(self, kernel: Kernel) -> None:
        """Run this kernel by its source."""
        source = kernel_source(kernel)
        for e in source.entries:
            self.kernels[e.name] = kernel, source.text, e

    def knows_what_is_loaded(self, *modules: str) -> None:
        """Run every kernel whose code one of these modules of `compiler.api` asks for."""
        load = gpu_code.load

        def noted(kernels: Iterable[Kernel], *more: Any) -> Any:
            kernels = list(kernels)
            for k in kernels:
                self.knows_kernel(k)
            return load(kernels, *more)

        for module in modules:
            self._patch.setattr(f"tilewright.compiler.api.{module}.load", noted)

    def _called(self, *args: Any) -> int:
        during, self.during = self.during, None
        return int((during or self._run)(*args))

    def _run(self, name: bytes, device: int, dims: Any, params: Any, sizes: Any, n: int) -> int:
        try:
            kernel, text, entry = self.kernels[name.decode()]
            cluster = (entry.cluster, 1, 1) if entry.cluster > 1 else (0, 0, 0)
            asked = (entry.blocks, 1, 1, entry.threads, 1, 1, entry.shared_bytes, *cluster)
            assert tuple(dims[:10]) == asked
            count = len(kernel.params)
            assert sizes[:n] == [8] * count + [128] * len(entry.tensor_maps)
            for t, at in zip(entry.tensor_maps, params[count:n], strict=True):
                _check_descriptor(t, at, params[t.buffer])
            buffers = [(b.name, self._array(b, device, params[k]), b.is_written)
                       for k, b in enumerate(kernel.params)]  # fmt: skip
            run_source(text, [entry], buffers)
            self.ran.append(entry.name)
        except Exception as e:
            self.errors.append(e)
            return FAULT
        return 0

    def _array(self, b: Buffer, device: int, at: int) -> np.ndarray:
        address = ctypes.c_uint64.from_address(at).value
        if address % ALIGNMENT:  # code says so to ptxas, which then reads 16 bytes at once
            raise SimError(f"{b.name} begins at {address:x}, no multiple of {ALIGNMENT}")
        host = self.library.stub_host(address, b.nbytes, device)
        if not host:
            raise SimError(f"{b.name}: {self.problems}")
        raw = (ctypes.c_ubyte * b.nbytes).from_address(host)
        return np.frombuffer(raw, stored_as(b.dtype).numpy)

    def fail(self, what: str) -> None:
        """Fail from now on, counted from now: "cuMemAlloc_v2:2=2,kernel:5=700"."""
        self.library.stub_fail(what.encode())

    @property
    def log(self) -> list[str]:
        """The calls so far."""
        return self.library.stub_log().decode().splitlines()

    @property
    def problems(self) -> str:
        """What was done that no program may do."""
        return self.library.stub_problems().decode()

    def clear(self) -> None:
        """Forget log and problems."""
        self.library.stub_clear_log()
        self.ran.clear()

    def used(self, device: int = 0) -> int:
        """Bytes of the device that are allocated."""
        return int(self.library.stub_used(device))

    @property
    def pinned(self) -> int:
        """Bytes of pinned memory of the host."""
        return int(self.library.stub_pinned())

    @property
    def depth(self) -> int:
        """How many contexts this thread has pushed."""
        return int(self.library.stub_depth())

    def finish(self) -> None:
        """Nothing was wrong, and no context was left behind."""
        gc.collect()
        assert not self.errors, self.errors
        assert not self.problems, self.problems
        assert self.depth == 0


def _check_descriptor(tensor: DescribedTensor, at: int, pointer: int) -> None:
    """What the kernel gets says of the buffer what the simulator takes it to be."""
    words = (ctypes.c_uint64 * 16).from_address(at)
    e = encoding(tensor)
    assert words[0] == ctypes.c_uint64.from_address(pointer).value
    assert words[1] == e.data_type | e.rank << 8 | e.swizzle << 16
    assert tuple(words[2 : 2 + e.rank]) == tensor.dims
    assert tuple(words[7 : 6 + e.rank]) == tensor.strides
    assert tuple(words[12 : 12 + min(e.rank, 4)]) == e.box[:4]
