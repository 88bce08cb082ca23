"""`tilewright inspect`: what a model compiles to: as a whole, level by level, node by node."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from ..errors import OptionError
from ..graph import textfile
from ..inspect.arena import draw
from ..inspect.gpu_views import GPU_VIEWS
from ..inspect.stages import listed, side_by_side, stage_named
from ..inspect.views import VIEWS
from ..text import human_bytes, printable
from .console import emit_json, show, show_table
from .models import Shown, add_json_argument, add_model_arguments, open_executable

LEVELS: Final = tuple(dict.fromkeys((*VIEWS, *GPU_VIEWS)))
"""Of all targets; an executable refuses those of others."""


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "inspect",
        help="show what a model compiles to",
        description="Without options: inputs, outputs, memory and kernels.",
    )
    add_model_arguments(p)
    # fmt: off
    p.add_argument("--stage", metavar="NAME",
                   help=f"print one level: {', '.join(LEVELS)}, or the graph after a pass")
    p.add_argument("--stages", action="store_true",
                   help="list the passes with milliseconds and what each of them changed")
    p.add_argument("--diff", nargs=2, metavar=("A", "B"), help="two stages side by side")
    p.add_argument("--op", metavar="NODE",
                   help="what became of a node of the model; with --stage, that level of it")
    p.add_argument("--kernel", metavar="K",
                   help="one kernel (k12, or its name): its nodes, why they share it, its loops; "
                   "with --stage, that level of it")
    p.add_argument("--nodes", action="store_true", help="list the model's nodes and their kernels")
    p.add_argument("--out", "-o", metavar="FILE", type=Path,
                   help="with --stage: write to a file; a graph (.txt) with its arrays beside it, "
                   "so that it can be compiled")
    p.add_argument("--repro", metavar="FILE.py", type=Path,
                   help="with --kernel: write a script that builds, runs and checks it alone")
    p.add_argument("--svg", metavar="FILE", type=Path,
                   help="with --stage memory: draw who lies where in the arena, and when")
    p.add_argument("--no-inplace", dest="inplace", action="store_false",
                   help="what if no result took the memory of an operand?")
    p.add_argument("--no-reorder", dest="reorder", action="store_false",
                   help="what if kernels ran in the model's order?")
    # fmt: on
    add_json_argument(p)
    p.set_defaults(handler=run)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    _check(args)
    exe = open_executable(args)
    if args.svg:
        args.svg.write_text(draw(exe.plan, Path(args.model).stem), encoding="utf-8")
    if args.stages:
        _stages(exe, args.json)
    elif args.nodes:
        _nodes(exe, args.json)
    elif args.diff:
        _diff(exe, args.diff, args.json)
    elif args.op or args.kernel:
        _about(exe, args)
    elif args.stage:
        _stage(exe, args)
    else:
        _summary(exe, args.model, args.json)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.svg and args.stage != "memory":
        raise OptionError("--svg draws the memory plan; give --stage memory with it")
    if args.out and not args.stage:
        raise OptionError("--out writes one level to a file; give --stage NAME with it")
    if args.repro and not args.kernel:
        raise OptionError("--repro writes a script for one kernel; give --kernel k12 with it")
    asked = [n for n in ("stages", "nodes", "diff", "op", "kernel") if getattr(args, n)]
    if len(asked) > 1 or (args.stage and asked and asked[0] not in ("op", "kernel")):
        both = " and ".join(f"--{n}" for n in (*asked, *(["stage"] if args.stage else [])))
        raise OptionError(f"{both} ask for different things; give one of them")


# --------------------------------------------------------------------------- levels


def _stage(exe: Shown, args: argparse.Namespace) -> None:
    text = exe.ir(args.stage)
    if args.json:
        facts = {"model": args.model, "stage": args.stage, "text": text}
        if args.stage == "memory":
            facts["memory"] = exe.plan.as_json() | {"operators": exe.memory_use().as_json()}
        emit_json(facts)
    elif args.out:
        _write(exe, args.stage, text, args.out)
    else:
        _print(text)


def _print(text: str) -> None:
    """Names stand quoted and escaped in every level."""
    print(text, end="" if text.endswith("\n") else "\n")


def _write(exe: Shown, name: str, text: str, path: Path) -> None:
    """To a file; graphs so that they can be compiled."""
    graph = exe.graph if name == "fused" else exe.stages[0].graph if name == "graph" else None
    if graph is None and name not in LEVELS:
        graph = stage_named(exe.stages, name).graph
    if graph is None:
        path.write_text(text, encoding="utf-8")
        files = [path]
    else:
        files = list(textfile.write(graph, path))
    show(f"written: {', '.join(map(str, files))}")


def _stages(exe: Shown, as_json: bool) -> None:
    found = list(listed(exe.stages))
    if as_json:
        emit_json([{"name": s.name, "stage": name, "milliseconds": s.milliseconds,
                    "changed": s.changed, "ops": len(s.graph.ops), "changes": said}
                   for s, (name, *_, said) in zip(exe.stages, found, strict=True)])  # fmt: skip
        return
    rows = [(name, f"{milliseconds:.2f}", ops, said) for name, milliseconds, ops, said in found]
    show_table(rows, ("stage", "ms", "ops", "what it changed"), "lrrl")


def _diff(exe: Shown, names: list[str], as_json: bool) -> None:
    a, b = names
    texts = exe.ir(a), exe.ir(b)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    text = side_by_side((a, b), texts, columns)
    if as_json:
        emit_json({"stages": [a, b], "texts": list(texts), "text": text})
    else:
        _print(text)


# --------------------------------------------------------------------------- one node or kernel


def _about(exe: Shown, args: argparse.Namespace) -> None:
    if args.repro:
        args.repro.write_text(exe.repro(args.kernel), encoding="ascii")
        show(f"written: {args.repro}")
        return
    which = {"op": args.op, "kernel": args.kernel}
    if not args.stage:
        page = exe.explain(**which)
        emit_json(page.as_json()) if args.json else _print(str(page))
        return
    text = exe.ir(args.stage, **which)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
        show(f"written: {args.out}")
    elif args.json:
        emit_json({"stage": args.stage, "text": text})
    else:
        _print(text)


def _nodes(exe: Shown, as_json: bool) -> None:
    if as_json:
        emit_json({n: list(numbers) for n, numbers in exe.nodes.items()})
        return
    rows = [(printable(n), ", ".join(f"k{k}" for k in numbers) or "none")
            for n, numbers in exe.nodes.items()]  # fmt: skip
    show_table(rows, ("model node", "kernels"))


def _summary(exe: Shown, model: str, as_json: bool) -> None:
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
