"""Walking and rewriting expressions. Nodes are interned, so every traversal is memoised."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .expr import COMPARE, SPECIAL, Expr, cast, compare, reduce, select, unary


def rebuild(e: Expr, args: tuple[Expr, ...]) -> Expr:
    """The same node over other arguments, simplified again."""
    if args == e.args:
        return e
    if e.op in SPECIAL:
        return SPECIAL[e.op](*args)
    if e.op in COMPARE:
        return compare(e.op, *args)
    if e.op == "select":
        return select(*args)
    if e.op == "not":
        return unary("not", args[0])
    if e.op == "cast":
        return cast(args[0], e.dtype)
    return Expr(e.op, args, e.payload, e.dtype)


def transform(e: Expr, visit: Callable[[Expr, tuple[Expr, ...]], Expr | None]) -> Expr:
    """Rebuild bottom-up; visit(node, new args) may return a replacement."""
    done: dict[Expr, Expr] = {}

    def go(n: Expr) -> Expr:
        r = done.get(n)
        if r is None:
            args = tuple([go(a) for a in n.args]) if n.args else ()
            r = visit(n, args)
            if r is None:
                r = n if args == n.args else rebuild(n, args)
            done[n] = r
        return r

    return go(e)


def substitute(e: Expr, mapping: Mapping[Expr, Expr]) -> Expr:
    """Replace variables (or whole nodes). A variable bound by a `reduce` inside e is not touched
    unless the mapping names it: then the reduce binds the new variable, or no longer runs over it
    when that is a constant."""
    if not mapping:
        return e

    def visit(n: Expr, args: tuple[Expr, ...]) -> Expr | None:
        hit = mapping.get(n)
        if hit is not None:
            return hit
        if n.op == "reduce":
            combine, over = n.payload
            kept = tuple(x for v in over if (x := mapping.get(v, v)).op == "var")
            return reduce(combine, kept, args[0])
        return None

    return transform(e, visit)


def walk(*roots: Expr) -> list[Expr]:
    """Every distinct node below the roots, arguments before users."""
    seen: set[Expr] = set()
    out: list[Expr] = []

    def go(n: Expr) -> None:
        if n not in seen:
            seen.add(n)
            for a in n.args:
                go(a)
            out.append(n)

    for r in roots:
        go(r)
    return out
