"""A parent's side of worker processes: start, ask, listen, end, and say why one has died.

A worker is an argument vector. It gets two pipes for messages and a page of memory for the board
(`board.py`), and hears their numbers as its last arguments (`serving.py` is its side). What it
prints goes into a third pipe, of which the end is kept: that says why when it dies. It has a
process group of its own, so that Ctrl-C in a terminal does not reach it, and so that what it may
have started ends with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from math import isfinite
from typing import Any, Final

from .board import NOBODY, Board, Post, Step, shared_page
from .outcome import FAILURE_KINDS, Failure
from .statistics import Sample
from .task import Candidate

KEPT: Final = 4096
"""Bytes that are kept of what a worker prints."""

LINE: Final = 1 << 20
"""Bytes that a message may have."""

LOOK_SECONDS: Final = 0.5
"""How often boards are looked at: what workers post there wakes nobody."""

LEAVE_SECONDS: Final = 1.0
"""A worker that closed its pipe, or was asked to leave, has so long to do so."""

PATIENCE: Final = 20.0
LEAST_BUILD: Final = 5.0
"""A build may take so many times as long as others, and at least so many seconds."""

NEARLY: Final = 0.75
"""Share of the memory limit from which crashes are put down to it: not all is used that counts."""

ROUGHLY: Final = 8 << 20
"""Bytes by which the system's counts of a process and its child may differ."""

_WORDS: Final = {"idle": "answering", "prepare": "preparing the task", "build": "building",
                 "run": "running"}  # fmt: skip
_NO_MEMORY: Final = ("bad_alloc", "out of memory", "cannot allocate memory", "memoryerror")
_SENT_AWAY: Final = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may take. start, prepare, build, run: seconds for starting, for the data of a
    task, for building a candidate, for running it once. memory: bytes of data, 0 for no limit."""

    start: float = 30.0
    prepare: float = 60.0
    build: float = 30.0
    run: float = 5.0
    memory: int = 8 << 30

    def among(self, seconds: float) -> Limits:
        """The limits where builds mostly take so many seconds: one that takes many times as long
        hangs, and need not be waited for."""
        return replace(self, build=min(self.build, max(LEAST_BUILD, PATIENCE * seconds)))

    def of(self, step: Step) -> float:
        """Seconds for what a worker has posted."""
        return {"prepare": self.prepare, "build": self.build, "run": self.run}.get(step, self.start)


@dataclass(frozen=True, slots=True)
class Built:
    """A candidate's code has been made."""

    place: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """One round: samples by place."""

    samples: tuple[tuple[int, Sample], ...]


@dataclass(frozen=True, slots=True)
class Failing:
    """A candidate has no time."""

    place: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Done:
    """All requests are answered."""


@dataclass(frozen=True, slots=True)
class Death:
    """The worker is no more. place: the candidate whose turn it was, NOBODY where that is not
    known. started: whether it ever answered. innocent: ended from outside, whatever it did."""

    failure: Failure
    step: Step
    place: int
    started: bool
    innocent: bool = False


Event = Built | Sampled | Failing | Done | Death


class Worker:
    """One process. Raises OSError where it cannot be made."""

    def __init__(
        self, argv: Sequence[str], limits: Limits, environment: Mapping[str, str] | None = None
    ) -> None:
        self.limits = limits
        self.started = False
        self.alive = True
        self._tasks: set[str] = set()
        self._pending = 0
        self._heard = time.monotonic()
        self._line = b""
        self._printed = b""
        self._mute = False  # it has closed what it prints to
        # A process starts out with the most that its parent ever had, as far as the system says,
        # which counts pages roughly.
        self._inherited = _resident(resource.getrusage(resource.RUSAGE_SELF)) + ROUGHLY
        pipes: list[tuple[int, int]] = []
        try:
            pipes += [os.pipe() for _ in range(3)]
            (requests, self._requests), (self._answers, answers), (self._output, printed) = pipes
            _widen(self._requests)
            with shared_page() as page:
                self._board = Board(page)
                numbers = (requests, answers, page, limits.memory)
                self._process = subprocess.Popen(
                    [*argv, *map(str, numbers)], stdin=subprocess.DEVNULL, stdout=printed,
                    stderr=printed, env=None if environment is None else dict(environment),
                    pass_fds=(requests, answers, page), start_new_session=True,
                )  # fmt: skip
        except BaseException:
            for descriptor in chain.from_iterable(pipes):
                os.close(descriptor)
            raise
        for descriptor in (requests, answers, printed):
            os.close(descriptor)
        for descriptor in (self._answers, self._output):
            os.set_blocking(descriptor, False)

    @property
    def busy(self) -> bool:
        """Whether it has something to answer."""
        return self._pending > 0

    # ---------------------------------------------------------------- asking

    def ask(self, what: str, task: str, payload: str, **more: Any) -> None:
        """Send a request. A worker that has died in the meantime will be heard of."""
        message: dict[str, Any] = {"do": what, "task": task, **more}
        if task not in self._tasks:
            self._tasks.add(task)
            message["payload"] = payload
        if not self.busy:
            self._heard = time.monotonic()
        self._pending += 1
        rest = memoryview(json.dumps(message).encode() + b"\n")
        with suppress(BrokenPipeError):
            while rest:
                rest = rest[os.write(self._requests, rest) :]

    # ---------------------------------------------------------------- listening

    def descriptors(self) -> tuple[int, ...]:
        """What becomes readable when there is news."""
        return (self._answers,) if self._mute else (self._answers, self._output)

    def expires(self) -> float:
        """When it will have taken too long for what it does, if it does not go on to something
        else: of `time.monotonic()`."""
        post = self._board.read()
        if not self.started or post is None or post.step == "idle":
            return self._heard + self.limits.start
        return post.since + self.limits.of(post.step)

    def news(self) -> Iterator[Event]:
        """What it has said since; in the end its death, if it has died or taken too long."""
        over = self._listen()
        *lines, self._line = self._line.split(b"\n")
        for line in lines:
            try:
                event = self._event(line)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                yield self._garbled(line)
                return
            if event is not None:
                yield event
        if len(self._line) > LINE:
            yield self._garbled(self._line)
        elif over:
            yield self._died()
        elif time.monotonic() > self.expires():
            yield self._expired()

    def _listen(self) -> bool:
        """Read what is there; whether the worker has closed its side."""
        printed, self._mute = _available(self._output)
        self._printed = (self._printed + printed)[-KEPT:]
        read, over = _available(self._answers)
        self._line += read
        return over

    def _event(self, line: bytes) -> Event | None:
        """A message, checked. Raises one of several errors for what is none."""
        message = json.loads(line)
        self._heard = time.monotonic()
        if "samples" in message:
            found = tuple((_whole(place), Sample(_positive(seconds), _positive(pressure + 1) - 1))
                          for place, seconds, pressure in message["samples"])  # fmt: skip
            return Sampled(found)
        if "built" in message:
            return Built(_whole(message["built"]))
        if "failed" in message:
            kind = message["kind"]
            if kind not in FAILURE_KINDS:
                raise ValueError(kind)
            detail = _printable(str(message["detail"]).encode())
            return Failing(_whole(message["failed"]), Failure(kind, detail))
        if "done" in message:
            self._pending -= 1
            if self._pending < 0:
                raise ValueError("one answer too many")
            return None if self._pending else Done()
        if "ready" in message:
            self.started = True
            return None
        raise ValueError("no message")

    # ---------------------------------------------------------------- ending

    def _expired(self) -> Death:
        """End it: it took too long."""
        post = self._board.read()
        step = post.step if post is not None else "idle"
        limit = self.limits.of(step) if self.started else self.limits.start
        doing = _WORDS[step] if self.started else "starting"
        self._end()
        return self._death(Failure("timeout", f"{doing} took more than {limit:g} s"), post)

    def _garbled(self, line: bytes) -> Death:
        """End it: it said what is no answer. Who did that is not known, as it has gone on since."""
        self._end()
        return self._death(Failure("protocol", f"it answered {_printable(line)!r}"), None)

    def close(self) -> None:
        """Ask it to leave if it has nothing to do, else end it now."""
        if not self.alive:
            return
        if not self.busy and self._requests >= 0:
            os.close(self._requests)
            self._requests = -1
            self._exited(LEAVE_SECONDS)
        self._end()

    def _died(self) -> Death:
        """It has closed its pipe."""
        self._exited(LEAVE_SECONDS)
        post = self._board.read()
        status, resident = self._end()
        reason = self._reason(status, resident)
        away = status < 0 and -status in _SENT_AWAY
        return self._death(reason, post, away)

    def _death(self, why: Failure, post: Post | None, innocent: bool = False) -> Death:
        if post is None:
            return Death(why, "idle", NOBODY, self.started, innocent)
        return Death(why, post.step, post.place, self.started, innocent)

    def _reason(self, status: int, resident: int) -> Failure:
        """Why it ended. status: negative for a signal. resident: the most bytes it ever had."""
        lines = [line for line in self._printed.splitlines() if line.strip()]
        said = f"; it printed last: {_printable(lines[-1])}" if lines else ""
        names = {s.value: s.name for s in signal.Signals}
        how = (f"it exited with status {status} in the middle" if status >= 0
               else f"it was ended by {names.get(-status, f'signal {-status}')}")  # fmt: skip
        limit = self.limits.memory
        short = any(word in self._printed.decode(errors="replace").lower() for word in _NO_MEMORY)
        if status == -signal.SIGKILL:
            return Failure("memory", f"the system killed it, most likely for want of memory{said}")
        much = limit > 0 and resident > max(NEARLY * limit, self._inherited)
        if status and (short or much):
            return Failure("memory", f"{how} after it took {resident >> 20} MiB{said}")
        return Failure("crash", how + said)

    def _exited(self, seconds: float) -> bool:
        """Whether it has left by itself within that time; it is not reaped."""
        until = time.monotonic() + seconds
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, self._process.pid, flags) is None:
            if time.monotonic() > until:
                return False
            time.sleep(0.002)
        return True

    def _end(self) -> tuple[int, int]:
        """End the process and all that it has started. Returns its status, negative for a signal,
        and the bytes of memory that it had at most."""
        self.alive = False
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._listen()
        for descriptor in (self._answers, self._output, self._requests):
            if descriptor >= 0:
                os.close(descriptor)
        self._pending = 0
        return self._process.returncode, _resident(usage)


def listen(
    workers: Collection[Worker], deadline: float, stopped: Callable[[], bool] = lambda: False
) -> list[tuple[Worker, Event]]:
    """Wait for news, and return them; nothing if there are none by the deadline, or soon after it
    is stopped."""
    while True:
        found = [(w, event) for w in workers if w.alive for event in w.news()]
        now = time.monotonic()
        if found or now >= deadline or stopped() or not any(w.alive for w in workers):
            return found
        with selectors.DefaultSelector() as selector:
            for w in workers:
                for descriptor in w.descriptors():
                    selector.register(descriptor, selectors.EVENT_READ)
            until = min(deadline, now + LOOK_SECONDS, *(w.expires() for w in workers))
            selector.select(max(until - now, 0.001))


def _widen(pipe: int) -> None:
    """Give a pipe room for any request, so that nobody has to read it for it to be sent: who hangs
    must not hang whoever asks."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # more than the system gives to one user
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, LINE)


def wanted(place: int, candidate: Candidate) -> list[Any]:
    """A candidate as a worker is told of it."""
    return [place, candidate.template, candidate.version, dict(candidate.config)]


def _resident(usage: resource.struct_rusage) -> int:
    """The most bytes of memory that a process had at a time."""
    return usage.ru_maxrss << (0 if sys.platform == "darwin" else 10)


def _available(descriptor: int) -> tuple[bytes, bool]:
    """What can be read without waiting, and whether there will be no more."""
    parts = []
    try:
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
            if sum(map(len, parts)) > LINE:  # whoever prints that fast is listened to in turns
                return b"".join(parts), False
        return b"".join(parts), True
    except BlockingIOError:
        return b"".join(parts), False


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def _positive(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value) or value <= 0:
        raise ValueError(value)
    return float(value)


def _printable(text: bytes) -> str:
    """The beginning of what came from a worker, in one line that no terminal acts upon."""
    shown = text[:200].decode(errors="replace").strip()
    return "".join(c if c.isprintable() else "?" for c in shown)
