"""What the commands print with: tables, progress, JSON; plain text where no terminal listens."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ..api.build import Progress as Callback
from ..text import printable, table


def emit_json(data: Any) -> None:
    """One JSON document on stdout; what JSON has no form for comes as text."""
    print(json.dumps(data, indent=2, ensure_ascii=True, default=str))


def show(line: str = "") -> None:
    """A line of text on stdout."""
    print(printable(line))


def show_table(
    rows: Sequence[Sequence[object]], header: Sequence[str], right: str = "", title: str = ""
) -> None:
    """A table; right: one character per column, "r" aligns it to the right."""
    cells = [[printable(str(c)) for c in row] for row in rows]
    if not sys.stdout.isatty():
        if title:
            print(printable(title))
        print(table(cells, header, right))
        return
    drawn = Table(title=Text(title) if title else None, title_justify="left", box=None,
                  pad_edge=False, header_style="bold")  # fmt: skip
    for k, name in enumerate(header):
        to_the_right = right[k : k + 1] == "r"
        drawn.add_column(Text(name), justify="right" if to_the_right else "left",
                         overflow="ellipsis" if k else "fold", no_wrap=to_the_right)  # fmt: skip
    for row in cells:
        drawn.add_row(*map(Text, row))
    Console().print(drawn)


@contextmanager
def progress(what: str, quiet: bool = False) -> Iterator[Callback | None]:
    """A progress bar on stderr for `compile(progress=...)`; None unless that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(what), total=None)

        def report(station: str, done: int, total: int) -> None:
            bar.update(task, description=f"{printable(what)}: {station}", completed=done,
                       total=total)  # fmt: skip

        yield report
