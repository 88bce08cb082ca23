"""`tilewright compile`: save a program for `tilewright run` and `tw.load`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..api.artifact import is_artifact
from ..errors import OptionError
from ..text import human_bytes, human_time
from .console import emit_json, show
from .models import add_json_argument, add_model_arguments, open_executable


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "compile",
        help="compile a model and save the program",
        description="Compile a model and save the program: graph, constants and native code.",
    )
    add_model_arguments(p)
    p.add_argument("--out", "-o", required=True, metavar="program.tw", help="the file to write")
    add_json_argument(p)
    p.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    out = Path(args.out)
    given = Path(args.model)
    if given.exists() and out.exists() and out.samefile(given) and not is_artifact(given):
        raise OptionError(f"-o {args.out} is the model itself, which would be lost")
    start = time.perf_counter()
    exe = open_executable(args)
    compiled = time.perf_counter() - start
    exe.save(args.out)
    size = Path(args.out).stat().st_size
    if args.json:
        emit_json({
            "model": args.model,
            "written": args.out,
            "bytes": size,
            "kernels": len(exe.kernels),
            "distinct": exe.stats.distinct,
            "built": exe.stats.built,
            "seconds": {"compile": compiled},
        })  # fmt: skip
        return 0
    show(f"{args.out}: {human_bytes(size)}, {len(exe.kernels)} kernels, "
         f"compiled in {human_time(compiled)} ({exe.stats.built} of {exe.stats.distinct} built, "
         "the others from the cache)")  # fmt: skip
    return 0
