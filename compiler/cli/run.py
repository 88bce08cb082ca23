"""`tilewright run`: compile a model and call it once."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from ..api.deferred import DeferredExecutable
from ..api.executable import random_input
from ..errors import InputError
from ..text import human_time
from .arrays import check_output, read_inputs, write_outputs
from .console import emit_json, show, show_table
from .models import add_json_argument, add_model_arguments, open_program, open_shapes

Array = npt.NDArray[Any]


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "run", help="run a model once", description="Compile a model, run it once, show outputs."
    )
    add_model_arguments(p)
    p.add_argument(
        "--input",
        "-i",
        action="append",
        default=[],
        metavar="name=file.npy",
        help="an input; or an .npz file with arrays under the inputs' names",
    )
    p.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="for the inputs not given, which are random (default: 0)",
    )
    p.add_argument("--out", "-o", metavar="out.npz", help="where to write the outputs")
    add_json_argument(p)
    p.set_defaults(handler=run)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    start = time.perf_counter()
    program = open_program(args)
    feeds = read_inputs(args.input, program.inputs)
    missing = [s for s in program.inputs if s.name not in feeds]
    if isinstance(program, DeferredExecutable):
        if missing:
            raise InputError(open_shapes(program))
        program = program.specialise({n: a.shape for n, a in feeds.items()})
    if args.out:
        check_output(args.out, len(program.outputs))
    compiled = time.perf_counter() - start
    for k, spec in enumerate(missing):
        feeds[spec.name] = random_input(spec, args.seed + k)
    start = time.perf_counter()
    results = program.run(feeds)
    seconds = time.perf_counter() - start
    if args.out:
        write_outputs(args.out, results)
    if args.json:
        emit_json({
            "model": args.model,
            "seconds": {"compile": compiled, "first_call": seconds},
            "inputs": [_facts(n, feeds[n]) | {"random": n in {s.name for s in missing}}
                       for n in (s.name for s in program.inputs)],
            "outputs": [_facts(n, y) for n, y in results.items()],
            "written": args.out,
        })  # fmt: skip
        return 0
    if missing:
        show(f"random inputs (seed {args.seed}): {', '.join(map(str, missing))}")
    rows = [_row(n, y) for n, y in results.items()]
    show_table(rows, ("output", "type", "min", "mean", "max"), "llrrr")
    wrote = f", wrote {args.out}" if args.out else ""
    show(f"compiled in {human_time(compiled)}, first call {human_time(seconds)}{wrote}")
    return 0


def _facts(name: str, a: Array) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": name, "dtype": str(a.dtype), "shape": list(a.shape)}
    if a.size and a.dtype.kind in "fiub":
        wide = a.astype(np.float64)
        with np.errstate(all="ignore"):
            values = {"min": wide.min(), "mean": wide.mean(), "max": wide.max()}
        # JSON has no infinities and no NaN
        facts |= {k: float(v) if np.isfinite(v) else str(v) for k, v in values.items()}
    return facts


def _row(name: str, a: Array) -> list[str]:
    facts = _facts(name, a)
    shape = ",".join(map(str, a.shape))
    values = [facts.get(k, "") for k in ("min", "mean", "max")]
    shown = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in values]
    return [name, f"{a.dtype}[{shape}]", *shown]
