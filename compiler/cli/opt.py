"""`tilewright opt`: passes run alone, on a graph in text form or on a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..api.build import Stopwatch, pipeline
from ..errors import OptionError
from ..graph import textfile
from ..graph.text import to_text
from ..inspect.stages import changes
from ..options import NUMERICS, options
from ..passes.base import Fuel, run_pipeline
from ..passes.pipeline import named
from .console import emit_json, show, show_table
from .models import add_json_argument, read_graph


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "opt",
        help="run single passes on a graph",
        description="Run passes, in the order given, and print the graph that they leave.",
    )
    # fmt: off
    p.add_argument("model", help="a graph in text form (.txt), or an .onnx model")
    p.add_argument("--pass", dest="passes", action="append", default=[], metavar="NAME",
                   help="a pass to run; may be repeated")
    p.add_argument("--list", action="store_true", help="list the passes in their order")
    p.add_argument("--shapes", action="append", default=[], metavar="x=1,3,224,224")
    p.add_argument("--outputs", metavar="a,b")
    p.add_argument("--numerics", choices=NUMERICS, default="standard")
    p.add_argument("--target", default="cpu", help="whose passes: cpu (the default), cuda:sm_90")
    p.add_argument("--out", "-o", metavar="FILE.txt", type=Path,
                   help="write the graph there, and its arrays beside it, instead of printing it")
    # fmt: on
    add_json_argument(p)
    p.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    chosen = options(numerics=args.numerics)
    known = pipeline(args.target, chosen)
    if args.list:
        _list(known, args.json)
        return 0
    if not args.passes:
        raise OptionError("opt needs --pass NAME; `tilewright opt MODEL --list` shows them")
    passes = named(known, args.passes)
    graph = read_graph(args)
    watch, fuel = Stopwatch(), Fuel(chosen.fuel)
    after, stages = run_pipeline(passes, graph, fuel)
    if args.out:
        files = textfile.write(after, args.out)
        show(f"written: {', '.join(map(str, files))}")
    elif args.json:
        emit_json({"model": args.model, "seconds": watch.lap(), "changes": changes(graph, after),
                   "passes": [{"name": s.name, "milliseconds": s.milliseconds,
                               "changed": s.changed} for s in stages],
                   "last_rewrite": fuel.last, "text": to_text(after)})  # fmt: skip
    else:
        print(to_text(after), end="")
    return 0


def _list(passes: Any, as_json: bool) -> None:
    rows = [(p.name, _purpose(p)) for p in passes]
    if as_json:
        emit_json([{"name": name, "purpose": said} for name, said in rows])
    else:
        show_table(rows, ("pass", "what it does"))


def _purpose(p: Any) -> str:
    """The first sentence of a pass's docstring."""
    text = " ".join((type(p).__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".")
