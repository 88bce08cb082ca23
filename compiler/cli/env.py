"""`tilewright env`: every environment variable that Tilewright reads, and its value now."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..options import ENVIRONMENT, SECRETS
from .console import emit_json, show_table
from .models import add_json_argument


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "env", help="list the environment variables", description="The environment variables."
    )
    add_json_argument(p)
    p.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.json:
        emit_json({n: {"value": _value(n), "meaning": m} for n, m in ENVIRONMENT.items()})
        return 0
    rows = [(n, _value(n, "-"), m) for n, m in ENVIRONMENT.items()]
    show_table(rows, ("variable", "value", "meaning"))
    return 0


def _value(name: str, otherwise: str | None = None) -> str | None:
    value = os.environ.get(name, otherwise)
    return "(set)" if name in SECRETS and os.environ.get(name) else value
