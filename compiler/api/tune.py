"""`tw.tune`: find faster kernels for a model within a budget, and keep what was measured."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..codegen.cuda.target import CudaTarget, cuda_target, is_cuda
from ..options import options, parse_seconds
from ..records import make_file, open_records
from ..runtime.cuda_device import capability
from .deferred import Shapes
from .source import cpu_target, read_closed

if TYPE_CHECKING:
    from .report import TuningReport
    from .tuning import Listener


def tune(
    source: Any,
    *,
    target: str = "cpu",
    budget: float | str = "10m",
    numerics: str = "standard",
    shapes: Shapes | None = None,
    outputs: Sequence[str] | None = None,
    threads: int | None = None,
    records: str | os.PathLike[str] | None = None,
    farm: str | None = None,
    progress: Listener | None = None,
    began: float | None = None,
) -> TuningReport:
    """Measure candidates for a model's kernels, the ones first that promise most for its run time.

    Every outcome is recorded at once. `tw.compile` uses what is recorded from then on, and another
    `tune` goes on where this one ended. Candidates run in processes of their own, and their results
    are checked before their times count.

    source, target, numerics, shapes, outputs, threads: as for `tw.compile`; records are good for
        compilations with the same numerics and number of threads. Candidates for GPUs run on the
        device that the target names; with "cuda", on all that the first one's code runs on, each
        of which takes some.
    budget: seconds, or text like "60s" or "10m", for all of it, compilations included. Ends within
        5 % or 2 seconds of it, unless compiling the model takes longer than that by itself; ends
        early when nothing is left to gain.
    records: a file to keep outcomes in instead of the user's cache. Compilations use the cache
        alone: `tilewright records export --records FILE` and `import` bring rows there.
    farm: the address of a dask.distributed scheduler, such as "tcp://10.0.0.1:8786": its workers
        run the candidates, each for the device that it is (with a GPU target, the first GPU that it
        sees), and this process keeps the records. "cuda:sm_90" needs no GPU here: then records are
        for the workers' devices, and no programs are compared.
    progress: called with every event (`tilewright.autotune.events`), in this thread.
    began: of `time.monotonic()`, when the budget began, if some of it has been spent already.

    The first Ctrl-C or SIGTERM ends the search with the best so far, which the report says; the
    second raises KeyboardInterrupt. Where all candidates for a kernel fail, the default serves, and
    the report warns.

    Raises as `tw.compile` does, OptionError when shapes are open or nobody can run candidates, and
    RecordsError when rows cannot be kept in the file `records`: it is left as it is.
    """
    began = time.monotonic() if began is None else began
    seconds = parse_seconds(budget)
    chosen = options(numerics=numerics, threads=threads, tune=False)
    machine = cuda_target(target, capability) if is_cuda(target) else cpu_target(target)
    graph = read_closed(source, shapes, outputs)
    from .crew import farm_crew, local_crew
    from .tuning import Budget, Means, tuned, tuned_abroad

    kept = open_records(writing=True) if records is None else make_file(records)
    crew = partial(local_crew, all_gpus=target == "cuda")
    if farm is not None:
        crew = partial(farm_crew, farm)
    with kept:
        means = Means(kept, crew) if progress is None else Means(kept, crew, progress)
        kept_to = Budget(seconds, began)
        if farm is not None and isinstance(machine, CudaTarget) and machine.device is None:
            return tuned_abroad(graph, machine, chosen, kept_to, means)
        return tuned(graph, machine, chosen, kept_to, means)[0]
