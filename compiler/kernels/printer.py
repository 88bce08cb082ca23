"""Kernel IR as readable, Python-like text. The text without comments is also the kernel's identity:
it keys the store, so it must hold everything that code generation depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from weakref import WeakKeyDictionary

from ...ops.expr import Expr, format_expr
from .ir import (
    Argument,
    Call,
    Comment,
    Declare,
    For,
    If,
    Kernel,
    Let,
    Prefetch,
    Set,
    Stmt,
    Store,
    Transpose,
    Unwritten,
    tensor_maps,
)

_texts: WeakKeyDictionary[Kernel, str] = WeakKeyDictionary()
_digests: WeakKeyDictionary[Kernel, str] = WeakKeyDictionary()


def _text(e: Expr) -> str:
    return format_expr(e, typed=True)


def _lines(body: Iterable[Stmt], depth: int) -> Iterable[str]:
    pad = "  " * depth
    for s in body:
        if isinstance(s, For):
            how = {"serial": "", "unroll": " (unroll)", "vector": f" (vector {s.lanes})"}[s.kind]
            by = f" by {s.step}" if s.step != 1 else ""
            lo, hi = _text(s.lo), _text(s.hi)
            _, first, end = s.var.payload
            within = "" if (lo, hi) == (str(first), str(end)) else f" within {first}..{end}"
            yield f"{pad}for {_text(s.var)} in {lo}..{hi}{within}{by}{how}:"
            yield from _lines(s.body, depth + 1)
        elif isinstance(s, Declare):
            loc = s.local
            dims = "".join(f", {d}" for d in loc.shape)
            lanes = f" x {loc.lanes}" if loc.lanes else ""
            what = f"shared align {loc.align}" if loc.shared else "local"
            yield f"{pad}{loc.name} = {what}({loc.dtype}{lanes}{dims}{', aside' * loc.aside})"
        elif isinstance(s, Set):
            at = f"[{', '.join(map(_text, s.where))}]" if s.where else ""
            yield f"{pad}{s.local.name}{at} = {_text(s.value)}"
        elif isinstance(s, Let):
            _, first, end = s.var.payload
            yield f"{pad}let {_text(s.var)} within {first}..{end} = {_text(s.value)}"
        elif isinstance(s, Transpose):
            yield f"{pad}transpose {s.local.name}"
        elif isinstance(s, Store):
            yield f"{pad}{s.buffer.name}[{_text(s.offset)}] = {_text(s.value)}"
        elif isinstance(s, If):
            yield f"{pad}if {_text(s.condition)}:"
            yield from _lines(s.then, depth + 1)
            if s.otherwise:
                yield f"{pad}else:"
                yield from _lines(s.otherwise, depth + 1)
        elif isinstance(s, Prefetch):
            yield f"{pad}prefetch {'far ' * s.far}{s.buffer.name}[{_text(s.offset)}]"
        elif isinstance(s, Call):
            yield f"{pad}{s.name}({', '.join(map(_argument, s.args))})"
        elif isinstance(s, Comment):
            yield f"{pad}# {s.text}"


def _argument(a: Argument) -> str:
    """Literals stand in brackets: a constant expression of the same value is another kernel."""
    return _text(a) if isinstance(a, Expr) else f"<{a}>" if isinstance(a, int) else a.name


def kernel_text(kernel: Kernel) -> str:
    """The whole kernel but for its name, deterministic. Made once per kernel."""
    found = _texts.get(kernel)
    if found is None:
        found = _texts[kernel] = _kernel_text(kernel)
    return found


def _kernel_text(kernel: Kernel) -> str:
    config = " ".join(f"{k}={v}" for k, v in kernel.config)
    lines = [f"template {kernel.template} v{kernel.version}  {config}".rstrip()]
    for b in kernel.params:
        lines.append(f"  {b.role} {b.name}: {b.dtype}[{b.elements}]")
    for p in kernel.phases:
        by = f" by {p.threads} threads {_text(p.thread)}" if p.thread is not None else ""
        by += f" in clusters of {p.cluster}" if p.cluster > 1 else ""
        by += f", {p.resident} resident" if p.resident else ""
        lines.append(f"  parallel {_text(p.item)} in {p.items}{by}:")
        lines.extend(f"    {m}" for m in tensor_maps(p))
        lines.extend(_lines(p.body, 2))
    return "\n".join(lines) + "\n"


def text_digest(kernel: Kernel) -> str:
    """The SHA-256 of the kernel's text, in hexadecimal: its identity."""
    if isinstance(kernel.phases, Unwritten):
        return kernel.phases.text
    found = _digests.get(kernel)
    if found is None:
        found = _digests[kernel] = hashlib.sha256(kernel_text(kernel).encode()).hexdigest()
    return found


def kernel_digest(kernel: Kernel) -> str:
    """A content hash that names the kernel: equal text, equal name."""
    return text_digest(kernel)[:12]


def symbol(kernel: Kernel) -> str:
    """The native symbol stem; phases append `_p0`, `_p1`, ..."""
    return f"tw_{kernel.template}_{kernel_digest(kernel)}"
