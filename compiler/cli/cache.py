"""`tilewright cache`: what is stored, throwing it away, and why a model misses it."""

from __future__ import annotations

import argparse
from typing import Any

from ..api.compile import analyse
from ..errors import OptionError
from ..inspect.views import kernel_name
from ..kernels.printer import symbol
from ..runtime.objects import object_key
from ..store import Entry, Store
from ..text import human_bytes
from .console import emit_json, show, show_table
from .models import add_json_argument, add_model_arguments, parse_shapes, split


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "cache",
        help="list, clear or explain the cache of built code",
        description="The cache of built code: TILEWRIGHT_CACHE, or the user's cache directory.",
    )
    actions = p.add_subparsers(dest="action", metavar="action", required=True)
    ls = actions.add_parser("ls", help="what is stored")
    clear = actions.add_parser("clear", help="remove everything")
    explain = actions.add_parser(
        "explain", help="which kernels of a model are stored, and what is different where not"
    )
    add_model_arguments(explain)
    for parser, handler in ((ls, list_entries), (clear, clear_entries), (explain, explain_model)):
        add_json_argument(parser)
        parser.set_defaults(handler=handler)


def list_entries(args: argparse.Namespace) -> int:
    """Every entry with its size."""
    store = Store()
    entries = store.entries()
    if args.json:
        emit_json({
            "directory": _where(store),
            "bytes": store.size,
            "entries": [{"name": e.name, "bytes": e.size, "symbol": _what(e),
                         "cpu": _field(e, "cpu")} for e in entries],
        })  # fmt: skip
        return 0
    if store.directory is None:
        show("the cache is switched off (TILEWRIGHT_CACHE)")
        return 0
    if entries:
        rows = [(_what(e), _field(e, "cpu"), human_bytes(e.size), e.name[:12])
                for e in entries]  # fmt: skip
        show_table(sorted(rows), ("what", "built for", "size", "entry"), "llrl")
    show(f"{len(entries)} entries, {human_bytes(store.size)} in {store.directory}")
    return 0


def clear_entries(args: argparse.Namespace) -> int:
    """Remove all entries."""
    store = Store()
    size = store.size
    removed = store.clear()
    freed = size - store.size
    if args.json:
        emit_json({"directory": _where(store), "removed": removed, "bytes": freed})
    elif store.directory is None:
        show("the cache is switched off (TILEWRIGHT_CACHE)")
    else:
        show(f"removed {removed} entries, {human_bytes(freed)}, from {store.directory}")
    return 0


def explain_model(args: argparse.Namespace) -> int:
    """Hit or miss for each distinct kernel of a model; nothing is built."""
    store = Store()
    if store.directory is None:
        raise OptionError("the cache is switched off (TILEWRIGHT_CACHE): every kernel is a miss")
    compiled = analyse(
        args.model, target=args.target, numerics=args.numerics, memory_limit=args.memory_limit,
        shapes=parse_shapes(args.shapes), outputs=split(args.outputs), threads=args.threads,
    )  # fmt: skip
    found: dict[str, tuple[str, Any]] = {}
    for launch in compiled.launches:
        name = symbol(launch.kernel)
        if name not in found:
            key = object_key(launch.kernel, compiled.target)
            found[name] = f"{kernel_name(launch)} ({launch.label})", store.explain(key)
    hits = sum(e.hit for _, e in found.values())
    if args.json:
        emit_json({
            "directory": _where(store),
            "hits": hits,
            "misses": len(found) - hits,
            "kernels": [
                {"symbol": name, "hit": e.hit, "nearest": e.nearest,
                 "differences": [d.field for d in e.differences]}
                for name, (_, e) in found.items()
            ],
        })  # fmt: skip
        return 0
    for label, explanation in found.values():
        if not explanation.hit:
            show(label)
            for line in str(explanation).splitlines():
                show(f"  {line}")
    show(f"{hits} of {len(found)} kernels are stored in {store.directory}")
    return 0


def _where(store: Store) -> str | None:
    return None if store.directory is None else str(store.directory)


def _what(entry: Entry) -> str:
    """A kernel's symbol; what else is stored says what it is."""
    fields = dict(entry.key)
    return str(next((fields[f] for f in ("symbol", "what", "kind") if f in fields), "-"))


def _field(entry: Entry, field: str) -> str:
    return str(dict(entry.key).get(field, "-"))
