"""The error that lists every node that cannot be compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Report:
    """A node that cannot be compiled. before: the values it reads, where a model may be cut."""

    op_type: str
    label: str
    types: tuple[str, ...]
    reason: str
    before: tuple[str, ...]
    domain: str = ""


def explain(reports: Sequence[Report], total: int) -> str:
    """The text of the error: one line per node, then what to do."""
    rows = [(r.op_type, f"node {r.label!r}", f"({', '.join(r.types)})", r.reason) for r in reports]
    widths = [min(max(len(row[k]) for row in rows), 48) for k in range(3)]
    lines = [
        "  " + " ".join(f"{cell:<{w}} " for cell, w in zip(row, widths, strict=False)) + row[3]
        for row in rows
    ]
    cuts = list(dict.fromkeys(name for r in reports for name in r.before))[:4]
    what_next = "Register an operator with tw.operator(...)"
    if cuts:
        names = " ".join(f"--outputs {_shell(name)}" for name in cuts)
        what_next += f", or cut the model before these nodes: {names}"
    if any(r.domain.startswith("com.microsoft") for r in reports):
        what_next += (
            "\n  Operators of com.microsoft are onnxruntime's own. Compile the model as it was "
            "before its optimizer,\n  or quantise in the format QDQ (the default of "
            "quantize_static)."
        )
    head = f"{len(rows)} of {total} nodes can't be compiled"
    return "\n".join([head, *lines, f"  {what_next}"])


def _shell(name: str) -> str:
    plain = name.replace("/", "").replace("_", "").replace(".", "").replace(":", "")
    return name if plain.isalnum() else repr(name)
