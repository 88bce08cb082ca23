"""`tilewright bisect`: what makes a model compute something wrong."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..api.bisect import bisect
from ..runtime.arrays import TensorSpec
from .arrays import read_inputs
from .console import emit_json
from .models import add_json_argument, add_model_arguments, read_graph, target_of


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "bisect",
        help="find what makes a model compute something wrong",
        description="Compare a compiled model with the float64 reference, pass by pass and kernel "
        "by kernel; name the first value out of bounds and who is to blame for it. Exit status: 0 "
        "nothing is wrong, 1 something is.",
    )
    add_model_arguments(p)
    # fmt: off
    p.add_argument("--input", action="append", default=[], metavar="x.npz",
                   help="arrays to compute with, as for `run`; made up otherwise")
    p.add_argument("--out", "-o", metavar="FOLDER", type=Path,
                   help="write the smallest part of the model that shows the fault, with its "
                   "inputs and a script (default: bisect-NAME, where something is wrong)")
    p.add_argument("--no-inplace", dest="inplace", action="store_false")
    p.add_argument("--no-reorder", dest="reorder", action="store_false")
    # fmt: on
    add_json_argument(p)
    p.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    graph = read_graph(args)
    specs = [TensorSpec.of(n, graph.type(n).dims, graph.type(n).dtype) for n in graph.inputs]
    found = bisect(
        graph, read_inputs(args.input, specs), target=target_of(args), numerics=args.numerics,
        threads=args.threads,
        memory_limit=args.memory_limit, reorder=args.reorder, inplace=args.inplace,
        folder=args.out or Path(f"bisect-{Path(args.model).stem}"),
    )  # fmt: skip
    if args.json:
        emit_json({"model": args.model, **found.as_json()})
    else:
        print(found)
    return 1 if found.is_wrong else 0
