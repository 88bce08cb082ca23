"""What a tuning session looks like while it runs: drawn on a terminal, told in lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...autotune.events import Began, Ended, Event, Reached, State, Tried, Warned, as_json
from ...autotune.outcome import Failure
from ..text import human_time, printable

Listener = Callable[[Event], None]

ROWS: Final = 12
"""Tasks that are drawn: those that weigh most."""

_REDRAW_SECONDS: Final = 0.25  # seldom, and only when something happened: drawing takes a processor


@contextmanager
def listening(what: str, as_lines_of_json: bool) -> Iterator[Listener]:
    """Who is told of a session's events: one JSON object a line on stdout; a drawing on stderr
    where that is a terminal, else lines of text on it."""
    if as_lines_of_json:
        yield _say_json
        return
    if not sys.stderr.isatty():
        yield Lines().hear
        return
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield Drawing(printable(what), live).hear


def _say_json(event: Event) -> None:
    print(json.dumps(as_json(event), ensure_ascii=True), flush=True)


class Lines:
    """One line for every station, warning and improvement."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self._best: dict[int, str] = {}

    def hear(self, event: Event) -> None:
        match event:
            case Reached(station, elapsed):
                self._say(f"{elapsed:7.1f} s  {station}")
            case Began(tasks, state):
                self._say(f"{state.elapsed:7.1f} s  {len(tasks)} tasks, "
                          f"{sum(t.candidates for t in tasks)} candidates, {state.recorded} known, "
                          f"{sum(t.weight for t in tasks):.0%} of the run time")  # fmt: skip
            case Tried() if isinstance(event.outcome, Failure):
                self._say(f"{event.state.elapsed:7.1f} s  {printable(event.label)}: "
                          f"{event.candidate} failed: {_failure(event.outcome)}")  # fmt: skip
            case Tried() if self._is_better(event):
                self._say(f"{event.state.elapsed:7.1f} s  {printable(event.label)}: "
                          f"{_ratio(event.default, event.best)} {event.best_candidate}; "
                          f"model {event.state.speedup:.3f}x, "
                          f"{event.state.remaining_gain:.1%} more expected")  # fmt: skip
            case Warned(text):
                self._say(f"warning: {printable(text)}")
            case Ended(why, state):
                self._say(f"{state.elapsed:7.1f} s  {why}: {_progress(state)}")

    def _is_better(self, event: Tried) -> bool:
        """Whether a task's best has changed, to something faster than its default."""
        if not event.default or not event.best or event.best >= event.default:
            return False
        before = self._best.get(event.task)
        self._best[event.task] = event.best_candidate
        return before != event.best_candidate


@dataclass(slots=True)
class _Row:
    label: str
    weight: float
    candidates: int
    seen: int
    default: float | None
    best: float | None
    what: str = ""
    gain: float | None = None


class Drawing:
    """The tasks that weigh most, under a line that says how far the session is."""

    def __init__(self, what: str, live: Live) -> None:
        self._what = what
        self._live = live
        self._station = "begin"
        self._state: State | None = None
        self._rows: list[_Row] = []
        self._busy = -1
        self._drawn = 0.0

    def hear(self, event: Event) -> None:
        match event:
            case Reached(station):
                self._station = station
            case Began(tasks, state):
                self._rows = [_Row(t.label, t.weight, t.candidates, t.recorded, t.default, t.best)
                              for t in tasks]  # fmt: skip
                self._state = state
            case Tried():
                row = self._rows[event.task]
                row.seen += 1
                row.default, row.best = event.default, event.best
                row.what, row.gain = event.best_candidate, event.remaining_gain
                self._state, self._busy = event.state, event.task
            case Warned(text):
                self._live.console.print(Text(f"warning: {printable(text)}", style="yellow"))
            case Ended(_, state):
                self._state, self._busy = state, -1
        now = time.monotonic()
        if not isinstance(event, Tried) or now - self._drawn > _REDRAW_SECONDS:
            self._drawn = now
            self._live.update(self.drawn(), refresh=True)

    def drawn(self) -> Group:
        """What stands on the screen now."""
        head = Text(f"{self._what}  {self._station}", style="bold")
        if self._state is not None:
            head.append(f"  {_progress(self._state)}", style="not bold")
        return Group(head, self._table())

    def _table(self) -> Table:
        drawn = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("share", "default", "best", "speedup", "seen", "to gain"):
            drawn.add_column(name, justify="right", no_wrap=True)
        drawn.add_column("task", no_wrap=True, overflow="ellipsis")
        drawn.add_column("best candidate", no_wrap=True, overflow="ellipsis")
        order = sorted(range(len(self._rows)), key=lambda k: -self._rows[k].weight)
        for k in order[:ROWS]:
            r = self._rows[k]
            drawn.add_row(
                f"{r.weight:.1%}", _time(r.default), _time(r.best), _ratio(r.default, r.best),
                f"{r.seen}/{r.candidates}", "" if r.gain is None else f"{r.gain:.1%}",
                Text(printable(r.label)), Text(printable(r.what)),
                style="bold" if k == self._busy else "",
            )  # fmt: skip
        return drawn


def _progress(state: State) -> str:
    return (f"{state.elapsed:.0f} s, at most {state.left:.0f} s to go; model {state.speedup:.3f}x "
            f"so far, {state.remaining_gain:.1%} more expected; {state.tried} candidates run "
            f"({state.failed} failed), {state.recorded} known before")  # fmt: skip


def _failure(outcome: Failure) -> str:
    return outcome.kind + (f" ({printable(outcome.detail)})" if outcome.detail else "")


def _time(seconds: float | None) -> str:
    return "" if seconds is None else human_time(seconds)


def _ratio(default: float | None, best: float | None) -> str:
    return f"{default / best:.2f}x" if default and best else ""
