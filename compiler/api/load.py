"""Saved programs back to life."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..codegen.cpu.target import host
from ..errors import ArtifactError, LoweringError
from ..options import options
from ..passes.base import Stage
from ..store import Key, Store
from ..tuning.choices import from_data
from .artifact import Saved, key_digest, read
from .build import Progress, Stopwatch, choose, device_of, link
from .collector import paused_collector
from .executable import Executable


class _Bundled(Store):
    """The entries that came with a program, then the user's store."""

    def __init__(self, entries: Mapping[str, bytes]) -> None:
        super().__init__()
        self._entries = entries

    def get(self, key: Key) -> bytes | None:
        found = self._entries.get(key_digest(key))
        return super().get(key) if found is None else found


@paused_collector()
def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    memory_limit: int | str | None = None,
    reorder: bool = True,
    inplace: bool = True,
    progress: Progress | None = None,
) -> Executable:
    """A program that `exe.save` wrote, ready to run.

    Its passes are not run again. Native code comes from the file where it was built for this very
    machine type and version, else from the store, else it is built now. Weights stay in the file,
    which is mapped: several processes that load it share its pages. Replace such a file, do not
    write into it while a program uses it.

    threads, memory_limit: as for `compile`; None is what the program was compiled with. reorder,
    inplace, progress: as for `compile`.
    A saved program contains native code: load only files that you would also run.

    Raises ArtifactError for a damaged or foreign file, or one whose layout this machine cannot run;
    OptionError for bad arguments; MemoryLimitError.
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
    target = host()
    try:
        choices = from_data(saved.choices, device_of(target, chosen))
    except (ValueError, TypeError, AttributeError, LookupError) as e:
        raise ArtifactError(
            f"saved program {str(path)!r} is malformed: its choices of kernels "
            f"({type(e).__name__}: {e}); compile the model again"
        ) from e
    reading = watch.lap()
    stage = Stage("load", saved.graph, reading * 1e3, True)
    try:
        store = _Bundled(saved.entries)
        compilation = choose((stage,), target, chosen, store, choices)
        kernels = watch.lap()
        return link(compilation, store, progress,
                    read=reading, passes=0.0, kernels=kernels, ready=saved.ready)  # fmt: skip
    except LoweringError as e:
        if _same_machine(saved, target.fingerprint):
            raise
        raise ArtifactError(
            f"saved program {str(path)!r} was made for {saved.target.get('cpu')!r} by Tilewright "
            f"{saved.version} and does not fit {target.cpu!r}: {e}. Compile the model again"
        ) from e


def _same_machine(saved: Saved, fingerprint: Mapping[str, str | int]) -> bool:
    return dict(saved.target) == dict(fingerprint)
