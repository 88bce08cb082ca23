"""The callable that `tw.compile` returns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..codegen.cpu.target import CpuTarget
from ..graph.bfloat16 import bits_of
from ..inspect.views import Compilation, kernel_name, view
from ..kernels.access import element_by_element
from ..kernels.ir import Launch
from ..kernels.printer import kernel_text
from ..runtime.arrays import TensorSpec, by_name, in_order, results_by_name, results_in_order
from ..runtime.objects import members
from ..runtime.program import Program
from ..tuning.fingerprint import kernel_device
from .artifact import write as write_artifact
from .inspectable import CompileStats, Inspectable

if TYPE_CHECKING:
    from ..inspect.profile import Profile
    from .timing import Timing

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """One launch of an executable.

    flops and bytes: the least work and memory traffic of the launch. ops: the model nodes it
    computes. source: its Kernel IR. notes: why it may be slower than it could be. origin: where its
    config comes from: "default", "memory limit", or the record of a measurement.
    """

    name: str
    template: str
    config: dict[str, Any]
    ops: tuple[str, ...]
    flops: int
    bytes: int
    source: str
    notes: tuple[str, ...] = ()
    origin: str = "default"


class Executable(Inspectable[CpuTarget]):
    """A compiled program: call it with arrays.

    `exe(x)` takes arrays in input order, `exe(data=x)` by name; one output comes back as an array,
    several as a tuple. `exe.run({...})` maps names to arrays on both sides. Arrays may have any
    strides; shape and dtype must match `exe.inputs`. Inputs are never written to.

    Results are new arrays, or those given as `out`: an array for a single output, else a tuple with
    one entry per output, of which some may be None; for `run`, a mapping from names, which may name
    some. They must be C-contiguous, aligned and writable, and share no memory with inputs, with
    each other or with constants. An input called "out" is given by position or to `run`.

    Calls from several threads run at once, each in an arena of its own (`exe.plan.arena_bytes`). As
    many arenas as the process may use processors are kept for later calls. With `threads` above 1,
    the helper threads serve one call at a time, kernel by kernel; the others compute alone.
    """

    def __init__(self, compilation: Compilation, program: Program, stats: CompileStats) -> None:
        super().__init__(compilation)
        self._program = program
        self._call = program.__call__  # bound once, which saves 0.1 us a call
        self.stats = stats
        self.inputs: tuple[TensorSpec, ...] = program.inputs
        self.outputs: tuple[TensorSpec, ...] = program.outputs

    def __call__(self, /, *arrays: Any, out: Any = None, **named: Any) -> Any:
        """Run once. Raises InputError when arrays do not fit the inputs or outputs."""
        into = () if out is None else results_in_order(self.outputs, out)
        results = self._call(in_order(self.inputs, arrays, named) if named else arrays, into)
        return results[0] if len(results) == 1 else tuple(results)

    def run(
        self, feeds: Mapping[str, Any], out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run once, by names. Raises InputError when arrays do not fit the inputs or outputs."""
        given = by_name(self.inputs, feeds)
        into = () if out is None else results_by_name(self.outputs, out)
        results = self._program(given, into)
        return {s.name: y for s, y in zip(self.outputs, results, strict=True)}

    # ---------------------------------------------------------------- inspection

    @property
    def threads(self) -> int:
        """How many threads run kernels, the caller's among them."""
        return self._program.pool.threads

    @property
    def kernels(self) -> tuple[KernelInfo, ...]:
        """Every kernel launch, in execution order."""
        return tuple(self._info(launch) for launch in self._compilation.launches)

    def _info(self, launch: Launch) -> KernelInfo:
        k = launch.kernel
        notes = (*element_by_element(k), *([launch.note] if launch.note else []))
        origin = launch.origin or ("memory limit" if launch.note else "default")
        return KernelInfo(kernel_name(launch), k.template, dict(k.config), self._nodes(launch),
                          k.flops, k.bytes, kernel_text(k), notes, origin)  # fmt: skip

    def _view(self, c: Compilation[CpuTarget], level: str) -> str:
        return view(c, level)

    def repro(self, kernel: str) -> str:
        """A script that builds one kernel ("k12", or its name) with the same config, runs it alone
        on made-up data and compares the result with the float64 reference. It needs Tilewright, but
        not the model.

        Raises OptionError for an unknown kernel, and for one with operators that were declared by
        the user.
        """
        from .repro import script_of

        device = kernel_device(self._compilation.target, self.threads)
        return script_of(self._compilation, kernel, device)

    def profile(self, *arrays: Any, rounds: int = 20, moved: bool = False) -> Profile:
        """Median time of every launch over `rounds` runs, beside the machine's measured limits;
        random inputs when none are given.

        A program on one thread is timed by that thread's own clock, which others on the machine do
        not advance. What timing itself costs is taken off. The limits are measured once per
        process, in about a second.

        moved: run `rounds` times more, and ahead of every launch, unless its multiply-adds take
        twice as long as its traffic, a kernel that only moves the same bytes: `moved_seconds` of
        the rows. On one thread only.
        """
        return self._timing.profile(self._feeds(arrays), rounds, moved)

    def samples(self, *arrays: Any, rounds: int = 20) -> tuple[tuple[float, ...], ...]:
        """Time of every launch in each of `rounds` runs, as in `profile`, in the order of
        `kernels`."""
        return tuple(map(tuple, self._timing.runs(self._feeds(arrays), rounds)))

    def profile_of(self, samples: Sequence[Sequence[float]]) -> Profile:
        """The profile that these `samples` make, one run at least."""
        return self._timing.profile_of(samples)

    def launch_seconds(self, *arrays: Any, rounds: int = 20) -> tuple[float, ...]:
        """Median time of every launch, as in `profile`, in the order of `kernels`."""
        return tuple(np.median(self.samples(*arrays, rounds=rounds), axis=0).tolist())

    @property
    def _timing(self) -> Timing:
        from .timing import Timing

        return Timing(self._compilation, self._program)

    def _feeds(self, arrays: Sequence[Any]) -> Sequence[Any]:
        return arrays or tuple(random_input(s) for s in self.inputs)

    def report(
        self, path: str | os.PathLike[str], *, name: str = "", profile: Profile | None = None
    ) -> None:  # fmt: skip
        """Write one HTML page about the program: its graph, kernels with their code, memory and
        passes, and what tuning measured of each kernel. It needs neither network nor server.

        name: of the model, for the title. profile: what to show times of; `exe.profile()` where
        none is given. Raises OSError when the file cannot be written.
        """
        from .page import cpu_page, write_text

        shown = self.profile() if profile is None else profile
        write_text(path, cpu_page(self._compilation, name or self.graph.name, self.threads,
                                  self.stats.stations, shown))  # fmt: skip

    def save(self, path: str | os.PathLike[str], *, packed: bool = True) -> None:
        """Write the program to a file for `tw.load`: graph, constants and native code.

        packed: also write weights in the form that kernels read, which on this type of machine load
        without work and are shared by all processes that load the file. Without them the file is
        about half as large, and every process packs weights into memory of its own.

        Raises ArtifactError when the file cannot be written.
        """
        c = self._compilation
        code = members((x.kernel for x in c.launches), c.target)
        write_artifact(path, c, code, self._program.constants if packed else {})

    def __repr__(self) -> str:
        ins = ", ".join(map(str, self.inputs))
        outs = ", ".join(map(str, self.outputs))
        n = len(self._compilation.launches)
        return f"<tilewright.Executable ({ins}) -> ({outs}), {n} kernels>"


def random_input(spec: TensorSpec, seed: int = 0) -> Array:
    """Plausible data for an input: normal floats, small non-negative integers."""
    rng = np.random.default_rng(seed)
    if spec.is_bf16:
        return bits_of(rng.standard_normal(spec.shape))
    if spec.dtype.kind == "f":
        return np.asarray(rng.standard_normal(spec.shape), spec.dtype)
    return np.asarray(rng.integers(0, 2, spec.shape), spec.dtype)
