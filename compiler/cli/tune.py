"""`tilewright tune`: spend a budget where a model spends its time, and keep what was measured."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from ..api.artifact import is_artifact
from ..api.tune import tune
from ..errors import OptionError
from ..runtime.linux import process_age
from .console import show
from .live import listening
from .models import add_model_arguments, parse_shapes, split, target_of

INTERRUPTED = 130


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "tune",
        help="find faster kernels for a model on this machine",
        description="Measure candidates for the kernels of a model, within a budget of time, and "
        "record every outcome: later compilations use what was found, and tuning goes on where it "
        "ended. The first Ctrl-C or SIGTERM ends the search and reports the best so far (exit "
        "status 130), the second aborts.",
    )
    add_model_arguments(p, memory_limit=False)
    p.add_argument(
        "--budget",
        default="60s",
        metavar="TIME",
        help="wall-clock time for all of it, such as 30s or 10m (default: 60s)",
    )
    p.add_argument(
        "--records", type=Path, metavar="FILE", help="keep outcomes there instead of in the cache"
    )
    p.add_argument(
        "--farm",
        metavar="tcp://HOST:PORT",
        help="a dask.distributed scheduler, on whose workers candidates are run",
    )
    p.add_argument(
        "--json",
        action="store_true",
        help="print what happens as JSON, one object a line, the report last",
    )
    p.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if is_artifact(args.model):
        raise OptionError(f"{args.model!r} is a saved program, whose kernels are fixed: tune the "
                          "model it was made of")  # fmt: skip
    began = time.monotonic() - (process_age() if args.own_process else 0.0)
    with listening(Path(args.model).name, args.json) as listener:
        report = tune(
            args.model, target=target_of(args), budget=args.budget, numerics=args.numerics,
            shapes=parse_shapes(args.shapes), outputs=split(args.outputs), threads=args.threads,
            records=args.records, progress=listener, farm=args.farm, began=began,
        )  # fmt: skip
    if args.json:
        print(json.dumps({"event": "report"} | report.as_json(), ensure_ascii=True))
    else:
        for line in str(report).splitlines():
            show(line)
    return INTERRUPTED if report.interrupted else 0
