"""`tilewright report`: everything about a program on one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..api.executable import Executable
from ..errors import OptionError
from ..text import human_bytes
from .arrays import add_input_arguments, inputs_of
from .console import emit_json, show
from .models import add_json_argument, add_model_arguments, open_executable


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "report",
        help="write one HTML page about a program",
        description="Write one HTML page that needs neither network nor server: graph, kernels "
        "with their code, times beside the machine's limits, what tuning measured, memory and "
        "passes. Kernels for a GPU that is not here come without times.",
    )
    add_model_arguments(p)
    p.add_argument("--out", "-o", required=True, metavar="report.html", type=Path,
                   help="the file to write")  # fmt: skip
    add_input_arguments(p)
    p.add_argument("--rounds", type=int, default=20, metavar="N",
                   help="runs to time every kernel in (default: 20)")  # fmt: skip
    add_json_argument(p)
    p.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.rounds < 1:
        raise OptionError(f"--rounds {args.rounds}: expected a number of runs, one at least")
    exe = open_executable(args)
    profile = None
    if isinstance(exe, Executable) or exe.has_device:
        profile = exe.profile(*inputs_of(args, exe.inputs), rounds=args.rounds)
    exe.report(args.out, name=Path(args.model).stem, profile=profile)
    size = args.out.stat().st_size
    if args.json:
        emit_json({"model": args.model, "written": str(args.out), "bytes": size,
                   "kernels": len(exe.kernels), "timed": profile is not None})  # fmt: skip
    else:
        without = "" if profile else ", without times: no GPU here runs them"
        show(f"{args.out}: {human_bytes(size)}, {len(exe.kernels)} kernels{without}; open it in a "
             "browser")  # fmt: skip
    return 0
