"""The arguments that name a model, and the program made of it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..api.artifact import is_artifact
from ..api.compile import compile
from ..api.deferred import DeferredExecutable
from ..api.executable import Executable
from ..api.gpu import GpuExecutable
from ..api.load import load
from ..api.source import read_closed
from ..errors import OptionError
from ..graph.ir import Graph
from ..options import NUMERICS
from .console import progress

Shown = Executable | GpuExecutable
Program = Shown | DeferredExecutable


def add_model_arguments(p: argparse.ArgumentParser, *, memory_limit: bool = True) -> None:
    """MODEL and what `compile` may be told about it."""
    # fmt: off
    p.add_argument("model", help="an .onnx model, a graph in text form (.txt), or a saved program")
    p.add_argument("--shapes", action="append", default=[], metavar="x=1,3,224,224",
                   help="shape of an input (x=5, with one dimension), or size of a named dimension "
                   "(N=5); may be repeated")
    p.add_argument("--outputs", metavar="a,b",
                   help="compute these values instead of the model's outputs")
    p.add_argument("--threads", type=int, metavar="N", help="threads that run kernels")
    p.add_argument("--numerics", choices=NUMERICS, default="standard")
    if memory_limit:
        p.add_argument("--memory-limit", metavar="512MiB", help="the largest arena that will do")
    p.add_argument("--target", help="cpu (the default), cuda, cuda:1, cuda:sm_90; for a saved "
                   "program the device that is to run it")
    # fmt: on


def target_of(args: argparse.Namespace) -> str:
    """What to compile a model for."""
    return args.target or "cpu"


def add_json_argument(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="print one JSON document")


def parse_shapes(given: Sequence[str]) -> dict[str, Any] | None:
    """`["x=1,3,8,8", "N=2"]` as compile(shapes=) takes it; None when nothing is given.

    A number without a comma is the size of a named dimension; an input of rank 1 is `x=5,` and
    one of rank 0 `x=`. Raises OptionError.
    """
    shapes: dict[str, Any] = {}
    for text in given:
        name, equals, dims = text.rpartition("=")
        if not equals or not name or not re.fullmatch(r"(\d+(,\d+)*,?)?", dims):
            raise OptionError(f"--shapes {text!r}: expected name=sizes, such as x=1,3,224,224")
        if name in shapes:
            raise OptionError(f"--shapes names {name!r} twice")
        sizes = [int(d) for d in dims.split(",") if d]
        shapes[name] = sizes[0] if len(sizes) == 1 and "," not in dims else sizes
    return shapes or None


def open_program(
    args: argparse.Namespace, shapes: Mapping[str, Any] | None = None
) -> Program:  # fmt: skip
    """Compile, or load, what the arguments say. shapes: in addition to those of the arguments."""
    given = {**(shapes or {}), **(parse_shapes(args.shapes) or {})}
    quiet = bool(getattr(args, "json", False))
    planning = {word: getattr(args, word) for word in ("reorder", "inplace") if word in args}
    with progress(Path(args.model).name, quiet) as report:
        if is_artifact(args.model):
            if given or args.outputs:
                raise OptionError(
                    f"{args.model!r} is a saved program: its shapes and outputs are fixed; "
                    "give --shapes and --outputs when you compile it"
                )
            program = load(args.model, target=args.target, threads=args.threads,
                           memory_limit=args.memory_limit, progress=report, **planning)  # fmt: skip
            saved = program._compilation.options.numerics
            if args.numerics not in ("standard", saved):
                raise OptionError(f"--numerics {args.numerics}: {args.model!r} is a saved program "
                                  f"with numerics={saved!r}; give the model")  # fmt: skip
            return program
        return compile(
            args.model, target=target_of(args), numerics=args.numerics,
            memory_limit=args.memory_limit, shapes=given or None, threads=args.threads,
            outputs=split(args.outputs), progress=report, **planning,
        )  # fmt: skip


def read_graph(args: argparse.Namespace) -> Graph:
    """The graph that a model is imported as, for commands that look at passes. Raises OptionError
    when the model leaves shapes open, or is a saved program."""
    if is_artifact(args.model):
        raise OptionError(f"{args.model!r} is a saved program, which has been through all passes: "
                          "give the model that it was made of")  # fmt: skip
    return read_closed(args.model, parse_shapes(args.shapes), split(args.outputs))


def open_executable(args: argparse.Namespace) -> Shown:
    """As `open_program`, for commands that want all shapes. Raises OptionError when the model
    leaves some open."""
    program = open_program(args)
    if isinstance(program, DeferredExecutable):
        raise OptionError(open_shapes(program))
    return program


def open_shapes(program: DeferredExecutable) -> str:
    """How to say the shapes of a model that leaves them open."""
    example = " ".join(
        f"--shapes {s.name}={','.join(str(d) if isinstance(d, int) else '1' for d in s.shape)}"
        for s in program.inputs
    )
    listed = ", ".join(map(str, program.inputs))
    return f"the model leaves shapes open ({listed}); give them, for example: {example}"


def split(text: str | None) -> list[str] | None:
    """`"a,b"` as a list."""
    return None if text is None else [part for part in text.split(",") if part]
