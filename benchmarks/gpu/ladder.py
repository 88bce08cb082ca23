"""The rungs of `rungs.py` on a device: is every thing that kernels are made of what we take it for?

python benchmarks/gpu/check.py --only ladder
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from loading import loaded, prepared
from rungs import FILL, RUNGS, Rung, Trial

from tilewright.compiler.codegen.cuda.operations import stored_as
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.kernels.printer import symbol
from tilewright.compiler.runtime.cuda_device import Device, Handle, device
from tilewright.compiler.runtime.cuda_graph import CudaGraph
from tilewright.compiler.runtime.cuda_launch import BoundLaunch

Row = dict[str, Any]
Array = Any
ROUND_TRIP: Final = 1 << 20


def names() -> list[str]:
    """Of all rungs, the first one without a kernel."""
    return ["memory of the device", *(r.name for r in RUNGS)]


def climb(number: int) -> Iterator[Row]:
    """One rung, by its place in `names`."""
    name = f"ladder {number:02d}: {names()[number]}"
    yield {"at": name}
    d = device(0)
    rung = RUNGS[number - 1] if number else None
    try:
        if rung is None:
            wrong = _copied(d)
        elif 10 * d.facts.capability[0] + d.facts.capability[1] < rung.needs:
            yield {"name": name, "skipped": f"it needs sm_{rung.needs}"}
            return
        else:
            wrong = tried(d, rung)
    except Exception as e:
        wrong = f"{type(e).__name__}: {e}"[:600]
    yield {"name": name, "error": wrong} if wrong else {"name": name, "ok": True}


def prepare(arch: str) -> Iterator[Row]:
    """The code of all rungs."""
    for r in RUNGS:
        yield {"at": r.name}
        target = CudaTarget(arch)
        if 10 * target.capability[0] + target.capability[1] >= r.needs:
            prepared(r.build().kernel, arch)


def _copied(d: Device) -> str:
    """What came back from the device, if it is not what went there."""
    sent, got = np.arange(ROUND_TRIP, dtype=np.uint32), np.zeros(ROUND_TRIP, np.uint32)
    with d:
        held = d.memory(sent.nbytes, "a round trip")
        d.upload(held.value, sent)
        d.call("cuMemcpyDtoH_v2", got.ctypes.data, held.value, got.nbytes)
    return "" if np.array_equal(sent, got) else "memory does not hold what was copied there"


def tried(d: Device, rung: Rung) -> str:
    """What is wrong with a rung's results, "" if nothing is."""
    trial = rung.build()
    with d:
        bound, _modules = loaded(d, trial.kernel)
        stream = d.stream()
        graph: CudaGraph | None = None
        kept = []  # so that arrays lie elsewhere the second time
        for _ in range(2 if rung.graphed else 1):
            held = _uploaded(d, trial)
            kept.append(held)
            _point(bound, list(held.values()))
            if not rung.graphed:
                for b in bound:
                    b.start(d, stream.value)
            else:
                graph = _launched(d, graph, bound, stream.value)
            d.call("cuStreamSynchronize", stream.value)
            wrong = _compared(d, trial, held)
            if wrong:
                return wrong
    return ""


def _launched(
    d: Device, graph: CudaGraph | None, bound: list[BoundLaunch], stream: int
) -> CudaGraph:
    """The launches as a graph, captured the first time, with changed parameters later."""
    if graph is None:
        graph = CudaGraph(d, stream, bound)
    else:
        for k in range(len(bound)):
            graph.update(k)
    graph.launch(stream)
    return graph


def _point(bound: list[BoundLaunch], held: list[Handle]) -> None:
    for k, handle in enumerate(held):
        for b in bound:
            b.point(k, handle.value)


def _uploaded(d: Device, trial: Trial) -> dict[str, Handle]:
    """Memory for every parameter: what is given, and bytes that nothing computes for results."""
    made = {}
    for p in trial.kernel.params:
        raw = np.full(p.nbytes, FILL, np.uint8)
        if p.name in trial.given:
            raw = np.ascontiguousarray(trial.given[p.name]).view(np.uint8).ravel()
        assert raw.nbytes == p.nbytes, f"{p.name}: {raw.nbytes} bytes of {p.nbytes}"
        made[p.name] = d.memory(p.nbytes, "a rung")
        d.upload(made[p.name].value, raw)
    return made


def _compared(d: Device, trial: Trial, held: Mapping[str, Handle]) -> str:
    for p in trial.kernel.params:
        if p.name not in trial.wanted:
            continue
        wanted = np.ascontiguousarray(trial.wanted[p.name])
        got = np.empty(p.elements, stored_as(p.dtype).numpy)
        d.call("cuMemcpyDtoH_v2", ctypes.c_void_p(got.ctypes.data), held[p.name].value, p.nbytes)
        found = got.view(wanted.dtype)
        off = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
        bad = ~(off <= trial.relative * np.abs(wanted).max())
        if bad.any():
            at = np.flatnonzero(bad)
            shown = ", ".join(f"[{k}] {found[k]} not {wanted[k]}" for k in at[:6])
            return f"{symbol(trial.kernel)}: {len(at)} of {len(wanted)} are wrong: {shown}"
    return ""
