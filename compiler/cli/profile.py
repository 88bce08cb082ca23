"""`tilewright profile`: where a model spends its time, and what changed since another run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ..api.artifact import is_artifact
from ..api.executable import Executable
from ..api.gpu_devices import place_of
from ..errors import OptionError
from ..inspect.compare import (
    BLOCKS,
    MOST_BYTES,
    TIMING,
    Comparison,
    Run,
    compare,
    read_run,
    run_of,
)
from ..inspect.gpu_limits import EVENTS_APART
from ..inspect.profile import Profile
from ..inspect.rollup import by_node, by_operator, by_scope, rollup_table
from ..inspect.roofline import draw
from ..tuning import fingerprint
from .arrays import add_input_arguments, inputs_of
from .console import emit_json, progress, show
from .models import Shown, add_model_arguments, open_executable

Samples = Sequence[Sequence[float]]

BY: Final = ("kernel", "node", "operator", "scope")


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "profile",
        help="time every kernel, beside the machine's limits; compare two runs",
        description="Time every kernel of a model, beside the machine's limits and rolled up to "
        "the model's nodes; compare with another run. A program on one thread is timed by that "
        "thread's own clock, one on a GPU by events on the device.",
    )
    add_model_arguments(p)
    add_input_arguments(p)
    p.add_argument("--rounds", type=int, default=30, metavar="N",
                   help="runs to time every kernel in (default: 30)")  # fmt: skip
    p.add_argument("--by", choices=BY, default="kernel",
                   help="kernel (the default); node: sets of model nodes, as small as can be told "
                   "apart; operator: of the model; scope: how nodes' names begin")  # fmt: skip
    p.add_argument("--depth", type=int, default=2, metavar="N",
                   help="names of a scope: 1 for /layer1, 2 for /layer1/block0")  # fmt: skip
    p.add_argument("--trace", type=Path, metavar="OUT.json",
                   help="write a trace for chrome://tracing or Perfetto")  # fmt: skip
    p.add_argument("--roofline", type=Path, metavar="OUT.svg",
                   help="draw every kernel beside the machine's limits")  # fmt: skip
    p.add_argument("--json", nargs="?", const="-", metavar="FILE",
                   help="write the profile with all samples to a file, for --against; without a "
                   "file, print it")  # fmt: skip
    p.add_argument("--against", type=Path, metavar="FILE",
                   help="print what changed since a profile that --json wrote; or what is other "
                   "with another model or saved program, in turns, which shows more")  # fmt: skip
    p.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    for option, value in (("--rounds", args.rounds), ("--depth", args.depth)):
        if value < 1:
            raise OptionError(f"{option} {value}: expected a number, one at least")
    before = None if args.against is None else _before(args.against)  # before anything takes time
    as_json = args.json == "-"
    exe = open_executable(args)
    rival = None
    if args.against is not None and before is None:
        rival = open_executable(_of(args, args.against))
    whose = [args] if rival is None else [args, _of(args, args.against)]
    kept = args.json is not None or args.against is not None
    blocks = min(BLOCKS, args.rounds) if kept else 1
    with progress("measuring", as_json) as report:
        samples = _measured(whose, [exe] if rival is None else [exe, rival], blocks, report)
    profile = exe.profile_of(samples[0])
    now = _run_of(args.model, exe, profile, samples[0], blocks)
    if rival is not None:
        before = _run_of(str(args.against), rival, rival.profile_of(samples[1]), samples[1], blocks)
    found = None if before is None else compare(before, now, in_turns=rival is not None)
    name = Path(args.model).stem
    if args.trace:
        args.trace.write_text(json.dumps(exe.trace(profile, name)), encoding="utf-8")
    if args.roofline:
        args.roofline.write_text(draw(profile, name), encoding="utf-8")
    facts = now.as_json() | {"profile": profile.as_json()}
    if as_json:
        emit_json(facts | ({} if found is None else {"comparison": found.as_json()}))
        return 0
    if args.json is not None:
        Path(args.json).write_text(json.dumps(facts), encoding="utf-8")
    _print(args, exe, profile, found)
    return 0


def _print(
    args: argparse.Namespace, exe: Shown, profile: Profile, found: Comparison | None
) -> None:  # fmt: skip
    if found is not None:
        text = str(found)
    elif args.by == "node":
        text = rollup_table(by_node(profile.rows), "nodes")
    elif args.by == "operator":
        text = rollup_table(by_operator(profile.rows, exe.stages[0].graph), "operators")
    elif args.by == "scope":
        text = rollup_table(by_scope(profile.rows, args.depth), "scope")
    else:
        text = str(profile)
    for line in text.splitlines():
        show(line)


def _measured(
    args: Sequence[argparse.Namespace], programs: Sequence[Shown], blocks: int, report: Any
) -> list[Samples]:  # fmt: skip
    """The samples of each program, taken in turns. For each block they are opened again, while
    those of the block before still lie elsewhere, and run once before they are timed."""
    rounds = args[0].rounds
    arrays = [inputs_of(a, exe.inputs) for a, exe in zip(args, programs, strict=True)]
    samples: list[list[Sequence[float]]] = [[] for _ in programs]
    for block in range(blocks):
        if block:
            programs = [_again(a) for a in args]
        first, end = rounds * block // blocks, rounds * (block + 1) // blocks
        for k in range(first - 1, end):
            order = range(len(programs))
            for n in order if k % 2 else reversed(order):
                (one,) = programs[n].samples(*arrays[n], rounds=1)
                if k >= first:
                    samples[n].append(one)
            if report is not None:
                report("rounds", k + 1, rounds)
    return [*samples]


def _again(args: argparse.Namespace) -> Shown:
    """The program once more, without telling how it is made."""
    return open_executable(argparse.Namespace(**dict(vars(args)) | {"json": True}))


def _run_of(model: str, exe: Shown, profile: Profile, samples: Samples, blocks: int) -> Run:
    timing, numerics = TIMING, exe._compilation.options.numerics
    if isinstance(exe, Executable):
        device = fingerprint.fingerprint(exe._compilation.target)
    else:
        device, timing = place_of(exe.program().device.number), EVENTS_APART
    named = fingerprint.label(device)
    return run_of(profile, samples, Path(model).stem, named, numerics, blocks, timing)


def _before(path: Path) -> Run | None:
    """The run in a file; None where the file is a model or a program. Raises OptionError."""
    if is_artifact(path) or path.suffix in (".onnx", ".txt"):
        return None
    with open(path, "rb") as f:
        data = f.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise OptionError(f"--against {path}: is too large for a profile")
    try:
        return read_run(data.decode("utf-8"), f"--against {path}")
    except UnicodeDecodeError as e:
        raise OptionError(f"--against {path}: is no profile: it is no text") from e


def _of(args: argparse.Namespace, model: Path) -> argparse.Namespace:
    """The same arguments for another model; a saved program has its shapes already."""
    given = dict(vars(args)) | {"model": str(model)}
    if is_artifact(model):
        given |= {"shapes": [], "outputs": None}
    return argparse.Namespace(**given)
