"""`tilewright inspect`: a summary of what a model compiles to, or one of its levels of IR."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from ..api.executable import Executable
from ..api.gpu import GpuExecutable
from ..errors import OptionError
from ..graph.text import to_text
from ..inspect.arena import draw
from ..inspect.gpu_views import GPU_VIEWS
from ..inspect.views import VIEWS
from ..text import human_bytes
from .console import emit_json, show, show_table
from .models import add_json_argument, add_model_arguments, open_shown

LEVELS: Final = tuple(dict.fromkeys((*VIEWS, *GPU_VIEWS)))
"""Of all targets; an executable refuses those of others."""


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "inspect",
        help="show what a model compiles to",
        description="Without --stage or --stages: inputs, outputs, memory and kernels.",
    )
    add_model_arguments(p)
    p.add_argument(
        "--stage",
        metavar="NAME",
        help=f"print one level: {', '.join(LEVELS)}, or the graph after a pass",
    )
    p.add_argument(
        "--svg",
        metavar="FILE",
        type=Path,
        help="with --stage memory: draw who lies where in the arena, and when",
    )
    p.add_argument(
        "--no-inplace",
        dest="inplace",
        action="store_false",
        help="what if no result took the memory of an operand?",
    )
    p.add_argument(
        "--no-reorder",
        dest="reorder",
        action="store_false",
        help="what if kernels ran in the model's order?",
    )
    p.add_argument("--stages", action="store_true", help="list the passes with milliseconds")
    add_json_argument(p)
    p.set_defaults(handler=run)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.svg and args.stage != "memory":
        raise OptionError("--svg draws the memory plan; give --stage memory with it")
    exe = open_shown(args)
    if args.svg:
        args.svg.write_text(draw(exe.plan, Path(args.model).stem), encoding="utf-8")
    if args.stages:
        _stages(exe, args.json)
    elif args.stage:
        text = stage_text(exe, args.stage)
        if args.json:
            facts = {"model": args.model, "stage": args.stage, "text": text}
            if args.stage == "memory":
                facts["memory"] = exe.plan.as_json() | {"operators": exe.memory_use().as_json()}
            emit_json(facts)
        else:
            # names stand quoted and escaped in every level
            print(text, end="" if text.endswith("\n") else "\n")
    else:
        _summary(exe, args.model, args.json)
    return 0


def stage_text(exe: Executable | GpuExecutable, name: str) -> str:
    """A level of IR, or the graph after the last pass of that name. Raises OptionError."""
    if name in LEVELS:
        return exe.ir(name)
    for stage in reversed(exe.stages):
        if stage.name == name:
            return to_text(stage.graph)
    passes = dict.fromkeys(s.name for s in exe.stages)
    raise OptionError(f"--stage {name!r}: there are the levels {', '.join(LEVELS)}, "
                      f"and the passes {', '.join(passes)}")  # fmt: skip


def _stages(exe: Executable | GpuExecutable, as_json: bool) -> None:
    facts = [{"name": s.name, "milliseconds": s.milliseconds, "changed": s.changed,
              "ops": len(s.graph.ops)} for s in exe.stages]  # fmt: skip
    if as_json:
        emit_json(facts)
        return
    rows = [(f["name"], f"{f['milliseconds']:.2f}", f["ops"], "yes" if f["changed"] else "no")
            for f in facts]  # fmt: skip
    show_table(rows, ("stage", "ms", "ops", "changed"), "lrrl")


def _summary(exe: Executable | GpuExecutable, model: str, as_json: bool) -> None:
    plan, kernels = exe.plan, exe.kernels
    if as_json:
        emit_json({
            "model": model,
            "inputs": [_spec(s) for s in exe.inputs],
            "outputs": [_spec(s) for s in exe.outputs],
            "ops": len(exe.stages[0].graph.ops),
            "memory": {"arena_bytes": plan.arena_bytes,
                       "lower_bound_bytes": plan.lower_bound_bytes,
                       "unshared_bytes": plan.unshared_bytes},
            "kernels": [{"name": k.name, "template": k.template, "config": k.config,
                         "ops": list(k.ops), "flops": k.flops, "bytes": k.bytes,
                         "notes": list(k.notes)}
                        for k in kernels],
        })  # fmt: skip
        return
    show(f"inputs   {', '.join(map(str, exe.inputs))}")
    show(f"outputs  {', '.join(map(str, exe.outputs))}")
    show(f"program  {len(exe.stages[0].graph.ops)} ops -> {len(kernels)} kernels, "
         f"arena {human_bytes(plan.arena_bytes)} (bound {human_bytes(plan.lower_bound_bytes)}, "
         f"unshared {human_bytes(plan.unshared_bytes)})")  # fmt: skip
    show()
    rows = []
    for number, k in enumerate(kernels):
        config = " ".join(f"{key}={value}" for key, value in k.config.items())
        rows.append((f"k{number}", k.name, f"{k.flops / 1e6:.2f}", f"{k.bytes / 1e6:.2f}", config,
                     " + ".join(k.ops) or "-"))  # fmt: skip
    show_table(rows, ("", "kernel", "MFLOP", "MB", "config", "model nodes"), "llrr")
    for number, k in enumerate(kernels):
        for note in k.notes:
            show(f"k{number}: {note}")


def _spec(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": str(spec.dtype), "shape": list(spec.shape)}
