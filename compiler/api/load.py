"""Saved programs back to life."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..codegen.cpu.target import CpuTarget, host
from ..codegen.cuda.target import KNOWN, CudaTarget, cuda_target, is_cuda, translates_to
from ..errors import ArchitectureError, ArtifactError, LoweringError, TargetError
from ..kernels.device import Device, gpu_device
from ..options import VERSION, options
from ..passes.base import Stage
from ..runtime.cuda_device import capability
from ..store import Key, Store
from ..tuning.choices import Choices, from_data
from .artifact import Saved, read
from .build import Progress, Stopwatch, choose, device_of, link
from .collector import paused_collector
from .executable import Executable

if TYPE_CHECKING:
    from .gpu import GpuExecutable


class _Bundled(Store):
    """The entries that came with a program, then the user's store."""

    def __init__(self, saved: Saved) -> None:
        super().__init__()
        self._saved = saved

    def get(self, key: Key) -> bytes | None:
        found = self._saved.get(key)
        return super().get(key) if found is None else found


@paused_collector()
def load(
    path: str | os.PathLike[str],
    *,
    target: str | None = None,
    threads: int | None = None,
    memory_limit: int | str | None = None,
    reorder: bool = True,
    inplace: bool = True,
    progress: Progress | None = None,
) -> Executable | GpuExecutable:
    """A program that `exe.save` wrote, ready to run.

    Its passes are not run again. Native code comes from the file where it was built for this very
    machine type and version, else from the store, else it is built now. Weights stay in the file,
    which is mapped: several processes that load it share its pages. Replace such a file, do not
    write into it while a program uses it.

    A program for GPUs may be loaded where there is none; it runs on the first device of its
    architecture, which is looked for at the first call.

    target: None for what the program was compiled for; "cuda" or "cuda:1" for a program for GPUs
        to be put on that device now. threads, memory_limit: as for `compile`; None is what the
        program was compiled with. reorder, inplace, progress: as for `compile`.
    A saved program contains native code: load only files that you would also run.

    Raises ArtifactError for a damaged or foreign file, or one whose layout this machine cannot run;
    TargetError for another target than the program's; OptionError for bad arguments;
    MemoryLimitError.
    """
    watch = Stopwatch()
    saved = read(path)
    chosen = options(
        numerics=saved.numerics,
        memory_limit=saved.memory_limit if memory_limit is None else memory_limit,
        threads=saved.threads if threads is None else threads,
        reorder=reorder,
        inplace=inplace,
        donate=saved.donate,
    )
    machine = _target(saved, target)
    reading = watch.lap()
    stages = (Stage("load", saved.graph, reading * 1e3, True),)
    try:
        if isinstance(machine, CudaTarget):
            from .gpu import loaded

            choices = _choices(saved, gpu_device(machine.capability))
            return loaded(saved, stages, machine, chosen, choices, progress)
        choices = _choices(saved, device_of(machine, chosen))
        compilation = choose(stages, machine, chosen, store := _Bundled(saved), choices)
        kernels = watch.lap()
        return link(compilation, store, progress,
                    read=reading, passes=0.0, kernels=kernels, ready=saved.ready)  # fmt: skip
    except LoweringError as e:
        if saved.version == VERSION and dict(saved.target) == machine.fingerprint:
            raise
        made = saved.target.get("cpu") or saved.target.get("gpu")
        here = f"{machine.cpu!r}" if isinstance(machine, CpuTarget) else f"Tilewright {VERSION}"
        raise ArtifactError(
            f"{saved.label} was made for {made!r} by Tilewright {saved.version} and does not fit "
            f"{here}: {e}. Compile the model again"
        ) from e


def _choices(saved: Saved, device: Device) -> Choices:
    try:
        return from_data(saved.choices, device)
    except (ValueError, TypeError, AttributeError, LookupError) as e:
        raise saved.malformed("its choices of kernels", e) from e


def _target(saved: Saved, wanted: str | None) -> CpuTarget | CudaTarget:
    """What to load a program for. Raises TargetError for what it is not for."""
    arch, label = saved.target.get("gpu"), saved.label
    if arch is None:
        if wanted not in (None, "cpu"):
            raise TargetError(f"target={wanted!r}: {label} is for CPUs; compile the model for it")
        return host()
    if arch not in KNOWN:
        raise ArtifactError(f"{label} is for GPUs of the architecture {arch!r}, which Tilewright "
                            f"{VERSION} does not know; compile the model again")  # fmt: skip
    made = CudaTarget(str(arch))
    if wanted is None:
        return made
    given = cuda_target(wanted, capability) if is_cuda(wanted) else None
    number = None if given is None else given.device
    fits = given is not None and (
        given == made if number is None else translates_to(made.arch, capability(number))
    )
    if not fits:
        runs = "" if given is None else f", and code for {made} does not run there"
        raise ArchitectureError(f"target={wanted!r}: {label} is for {made}{runs}; compile the model"
                                f" with target={wanted!r}")  # fmt: skip
    return CudaTarget(made.arch, number)
