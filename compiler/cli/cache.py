"""`tilewright cache`: what is stored, throwing it away, and what a model's kernels find of it."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ...autotune.row import to_data
from ..api.build import device_of
from ..api.compile import analyse
from ..api.gpu_devices import device_for, place_of
from ..codegen.cuda.target import CudaTarget
from ..errors import OptionError
from ..inspect.views import Compilation, kernel_name
from ..kernels.device import gpu_device
from ..kernels.printer import symbol
from ..records import open_records
from ..runtime.gpu_code import ptx_key
from ..runtime.objects import object_key
from ..store import Entry, Store
from ..store import Explanation as StoreExplanation
from ..text import human_bytes
from ..tuning.explain import Explanation as ConfigExplanation
from ..tuning.explain import explain
from .console import emit_json, show, show_table
from .models import add_json_argument, add_model_arguments, parse_shapes, split, target_of


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "cache",
        help="list or clear the cache of built code; what a model finds in it",
        description="The cache of built code: TILEWRIGHT_CACHE, or the user's cache directory.",
    )
    actions = p.add_subparsers(dest="action", metavar="action", required=True)
    ls = actions.add_parser("ls", help="what is stored")
    clear = actions.add_parser("clear", help="remove everything")
    explain = actions.add_parser(
        "explain",
        help="where the config of each kernel of a model comes from, and whether its code "
        "is stored; what is different where not",
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
                         "cpu": _field(e, "cpu"), "gpu": _field(e, "arch")} for e in entries],
        })  # fmt: skip
        return 0
    if store.directory is None:
        show("the cache is switched off (TILEWRIGHT_CACHE)")
        return 0
    if entries:
        rows = [(_what(e), _field(e, "cpu", "arch"), human_bytes(e.size), e.name[:12])
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


@dataclass(frozen=True, slots=True)
class _Kernel:
    """What is known of one distinct kernel. choice: of its config; None where there is nothing to
    say but `otherwise`."""

    name: str
    stored: StoreExplanation
    choice: ConfigExplanation | None
    otherwise: str


def explain_model(args: argparse.Namespace) -> int:
    """For each distinct kernel of a model, where its config comes from, and whether its code is
    stored; nothing is built."""
    store = Store()
    if store.directory is None:
        raise OptionError("the cache is switched off (TILEWRIGHT_CACHE): every kernel is a miss")
    compiled = analyse(
        args.model, target=target_of(args), numerics=args.numerics, memory_limit=args.memory_limit,
        shapes=parse_shapes(args.shapes), outputs=split(args.outputs), threads=args.threads,
    )  # fmt: skip
    found = _kernels(compiled, store)
    hits = sum(k.stored.hit for k in found.values())
    if args.json:
        emit_json({
            "directory": _where(store), "hits": hits, "misses": len(found) - hits,
            "kernels": [
                {"symbol": name, "hit": k.stored.hit, "nearest": k.stored.nearest,
                 "differences": [d.field for d in k.stored.differences],
                 "config": _config(k.choice)} for name, k in found.items()
            ],
        })  # fmt: skip
        return 0
    for k in found.values():
        show(k.name)
        if k.choice is None:
            show(f"  {k.otherwise}")
        else:
            show(f"  {k.choice.said}")
            for line in str(k.choice).splitlines()[1:]:
                show(f"  {line}")
        for line in f"code: {k.stored}".splitlines():
            show(f"  {line}")
    said = Counter(k.choice.said for k in found.values() if k.choice is not None)
    for words, count in said.most_common():
        show(f"{count} of {len(found)} kernels: {words}")
    show(f"{hits} of {len(found)} kernels are stored in {store.directory}")
    return 0


def _kernels(c: Compilation[Any], store: Store) -> dict[str, _Kernel]:
    """The distinct kernels of a compilation by symbol."""
    number = device_for(c.target) if isinstance(c.target, CudaTarget) else None
    choices: dict[int, ConfigExplanation] = {}
    otherwise = "the only config there is"
    if isinstance(c.target, CudaTarget) and number is None:
        otherwise = "default config: records are of devices, and none here runs this"
    else:
        device = device_of(c.target, c.options) if number is None else gpu_device(
            c.target.capability)  # fmt: skip
        with open_records() as records:
            found = explain(c, device, records, None if number is None else place_of(number))
        choices = {n: e for e in found for n in e.use.launches}
    key = ptx_key if isinstance(c.target, CudaTarget) else object_key
    kernels: dict[str, _Kernel] = {}
    for k, launch in enumerate(c.launches):
        name = symbol(launch.kernel)
        if name not in kernels:
            stored = store.explain(key(launch.kernel, c.target))
            what = f"{kernel_name(launch)} ({launch.label})"
            kernels[name] = _Kernel(what, stored, choices.get(k), otherwise)
    return kernels


def _config(e: ConfigExplanation | None) -> dict[str, Any] | None:
    """Where a config comes from, as JSON."""
    if e is None:
        return None
    return {
        "verdict": e.verdict, "kernel": e.kernel, "problem": e.use.task.key.digest,
        "record": None if e.row is None else to_data(e.row),
        "nearest": None if e.nearest is None else to_data(e.nearest),
        "differences": list(e.differences),
    }  # fmt: skip


def _where(store: Store) -> str | None:
    return None if store.directory is None else str(store.directory)


def _what(entry: Entry) -> str:
    """A kernel's symbol; what else is stored says what it is."""
    fields = dict(entry.key)
    return str(next((fields[f] for f in ("symbol", "what", "kind") if f in fields), "-"))


def _field(entry: Entry, *names: str) -> str:
    """The first of these fields that an entry's key has."""
    fields = dict(entry.key)
    return str(next((fields[n] for n in names if n in fields), "-"))
