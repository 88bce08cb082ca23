"""The callable that `tw.compile` returns for a GPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..codegen.cuda.target import CudaTarget
from ..inspect.gpu_limits import gpu_limits
from ..inspect.gpu_views import Gpu, gpu_code, gpu_view
from ..inspect.profile import Profile, profile
from ..kernels.printer import symbol
from ..runtime.arrays import TensorSpec, by_name, in_order, results_by_name, results_in_order
from ..runtime.constants import Constant, Ready, prepare
from ..runtime.cuda_program import CudaProgram
from ..runtime.gpu_code import GpuCodes
from ..runtime.gpu_saved import members
from ..runtime.threads import default_threads
from .artifact import write as write_artifact
from .executable import random_input
from .gpu_devices import device_for, opened_for
from .gpu_kernels import GpuKernelInfo, kernel_info
from .inspectable import Inspectable
from .timing import CLOCK_STEP

Array = npt.NDArray[Any]


class GpuExecutable(Inspectable[CudaTarget]):
    """A program for a GPU: called as an `Executable` is, and looked at by the same properties.

    It runs on the device that `target` names, "cuda" the first; a program for an architecture,
    "cuda:sm_90", on the first device of that kind, which is looked for at the first call.

    Arrays may be numpy's, or lie on the device: those of PyTorch, CuPy, and all that speak DLPack
    or `__cuda_array_interface__` are used without a copy. Results are numpy arrays if all inputs
    are on the host. If one is on the device, they are there too, as arrays of its library where
    that has `from_dlpack`, else as `DeviceArray`. `out=` takes arrays of either kind.

    stream: where a call is put, as the library's object or a handle. Without it, calls with arrays
    on the device go to the legacy default stream, as PyTorch's and CuPy's work does unless told
    otherwise, and return before they are done; others return with their results.

    Calls from several threads run at once, each in an arena of its own; two are kept for later
    calls. `close` gives back the memory on the device, as does the end of the object.
    """

    threads: Final = 1
    """Of the host, that a call takes."""

    def __init__(self, compilation: Gpu, codes: GpuCodes, ready: Ready | None = None) -> None:
        """ready: constants that need no packing."""
        super().__init__(compilation)
        self._codes, self._ready = codes, ready
        self._program: CudaProgram | None = None
        self._lock = threading.Lock()
        g = compilation.graph

        def specs(names: Sequence[str]) -> tuple[TensorSpec, ...]:
            kinds = map(g.type, names)
            return tuple(TensorSpec.of(n, t.dims, t.dtype)
                         for n, t in zip(names, kinds, strict=True))  # fmt: skip

        self.inputs: tuple[TensorSpec, ...] = specs(g.inputs)
        self.outputs: tuple[TensorSpec, ...] = specs(g.outputs)
        if self.target.device is not None:
            self.program()

    def __call__(self, /, *arrays: Any, out: Any = None, stream: Any = None, **named: Any) -> Any:
        """Run once. Raises InputError when arrays do not fit, TargetError where there is no device
        for the program, DeviceMemoryError, and DeviceLostError after a kernel faulted."""
        into = () if out is None else results_in_order(self.outputs, out)
        given = in_order(self.inputs, arrays, named) if named else arrays
        results = self.program()(given, into, stream)
        return results[0] if len(results) == 1 else tuple(results)

    def run(
        self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None = None, stream: Any = None
    ) -> dict[str, Any]:
        """Run once, by names. Raises as a call does."""
        given = by_name(self.inputs, feeds)
        into = () if out is None else results_by_name(self.outputs, out)
        results = self.program()(given, into, stream)
        return {s.name: y for s, y in zip(self.outputs, results, strict=True)}

    def program(self) -> CudaProgram:
        """The program on its device, loaded if it is not yet. Raises TargetError, DeviceError and
        DeviceMemoryError."""
        with self._lock:
            if self._program is None:
                c = self._compilation
                where = opened_for(self.target)
                self._program = CudaProgram(
                    c.graph, c.launches, c.plan, c.target, self._codes, self._constants(), where,
                    poison=c.options.poison, graphs=c.options.cuda_graph,
                )  # fmt: skip
            return self._program

    def _constants(self) -> Mapping[Constant, Array]:
        """Those that kernels read, as they read them."""
        c = self._compilation
        return prepare(c.graph, c.launches, default_threads(), self._ready)

    def profile(self, *arrays: Any, rounds: int = 20) -> Profile:
        """Median time of every launch over `rounds` runs, measured by events on the device, beside
        what its clocks and widths allow on paper (not measured, and without tensor cores); random
        inputs when none are given."""
        return self.profile_of(self.samples(*arrays, rounds=rounds))

    def samples(self, *arrays: Any, rounds: int = 20) -> tuple[tuple[float, ...], ...]:
        """Time of every launch in each of `rounds` runs, as in `profile`, in the order of
        `kernels`."""
        feeds = arrays or tuple(random_input(s) for s in self.inputs)
        runs = self.program().samples(feeds, rounds)
        return tuple(tuple(max(t, CLOCK_STEP) for t in run) for run in runs)

    def profile_of(self, samples: Sequence[Sequence[float]]) -> Profile:
        """The profile that these `samples` make, one run at least."""
        c = self._compilation
        limits = gpu_limits(self.program().device.facts)
        return profile(c.graph, c.launches, c.plan.arena_bytes, limits,
                       np.median(samples, axis=0).tolist(), samples=samples)  # fmt: skip

    def launch_seconds(self, *arrays: Any, rounds: int = 20) -> tuple[float, ...]:
        """Median time of every launch, as in `profile`, in the order of `kernels`."""
        return tuple(np.median(self.samples(*arrays, rounds=rounds), axis=0).tolist())

    def save(self, path: str | os.PathLike[str], *, packed: bool = True) -> None:
        """Write the program to a file for `tw.load`: graph, constants, PTX, and machine code where
        that was made. It takes no device, and runs on any of the same architecture.

        packed: also write weights in the form that kernels read, which load without work. Raises
        ArtifactError when the file cannot be written.
        """
        c = self._compilation
        code = members((x.kernel for x in c.launches), self._codes, c.target)
        write_artifact(path, c, code, self._constants() if packed else {})

    def close(self) -> None:
        """Give back the memory on the device; calls raise DeviceError from now on."""
        if self._program is not None:
            self._program.close()

    @property
    def has_device(self) -> bool:
        """Whether this machine has a device that runs the program."""
        return self._program is not None or device_for(self.target) is not None

    @property
    def launching(self) -> str:
        """How a call's kernels are launched: "one graph", or "one by one" and why."""
        return self.program().how

    @property
    def target(self) -> CudaTarget:
        """What the code is for."""
        return self._compilation.target

    @property
    def kernels(self) -> tuple[GpuKernelInfo, ...]:
        """Every kernel launch, in execution order."""
        c, codes = self._compilation, self._codes.codes
        return tuple(kernel_info(c.graph, x, codes[symbol(x.kernel)], self._nodes(x), c.target)
                     for x in c.launches)  # fmt: skip

    def repro(self, kernel: str) -> str:
        """A script that has the Numba CUDA source of one kernel ("k12", or its name), runs it alone
        on made-up data, on the first device of this architecture, and compares the result with the
        float64 reference. The source may be changed there. It needs Tilewright, but not the model.

        Raises OptionError for an unknown kernel, and for one with operators that were declared by
        the user.
        """
        from .gpu_repro import gpu_script

        return gpu_script(self._compilation, kernel)

    def _view(self, c: Gpu, level: str) -> str:
        return gpu_view(c, self._codes, level)

    def report(
        self, path: str | os.PathLike[str], *, name: str = "", profile: Profile | None = None
    ) -> None:  # fmt: skip
        """Write one HTML page about the program: its graph, kernels with their code, memory and
        passes. name: of the model, for the title. profile: what to show times of, none without it.
        Raises OSError."""
        from .page import gpu_page, write_text

        write_text(path, gpu_page(self._compilation, gpu_code(self._codes), name or self.graph.name,
                                  self.stats.stations, profile))  # fmt: skip

    def __repr__(self) -> str:
        ins, outs = (", ".join(map(str, s)) for s in (self.inputs, self.outputs))
        n = len(self._compilation.launches)
        return f"<tilewright.GpuExecutable ({ins}) -> ({outs}), {n} kernels for {self.target}>"
