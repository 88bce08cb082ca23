"""A worker's side: requests come as JSON lines through one pipe, answers leave through another.

Neither is standard output, where candidates may print what they like. A message is one object:

    to a worker     {"do": "prepare", "task": name}
                    {"do": "build", "task": name, "wanted": [[place, template, version, config]]}
                    {"do": "measure", ..., "rounds": [samples wanted of each], "deadline": seconds}
                    the first request of a task brings "payload": text
    from a worker   {"ready": pid}                   it has started
                    {"built": place}
                    {"samples": [[place, seconds, pressure]]}
                    {"failed": place, "kind": kind, "detail": line}
                    {"done": name}                   the request has been answered

Every request is answered with what comes of it, and then with "done". Preparing a task ahead saves
time while other workers build; what goes wrong with that is told when a candidate needs it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from .board import NOBODY, Board, Step
from .outcome import Failure, FailureKind
from .statistics import Sample
from .task import Candidate

DETAIL: Final = 300
"""Characters of a failure's detail that are passed on."""

TASKS: Final = 4
"""Tasks whose data a worker keeps: those that a search turns to and fro between."""

Post = Callable[[Step, int], None]
Wanted = Sequence[tuple[int, Candidate]]


class Bench(Protocol):
    """Builds and measures candidates of one task. It posts every candidate on the board before it
    touches it, and raises Failed for what is the candidate's fault."""

    def prepare(self) -> None:
        """Make what all candidates need to be measured, if that has not been done."""

    def build(self, place: int, candidate: Candidate) -> None:
        """Make its code, where those that measure find it."""

    def measure(
        self, wanted: Wanted, rounds: Sequence[int], deadline: float
    ) -> Iterator[Sequence[tuple[int, Sample | Failure]]]:  # fmt: skip
        """So many samples of each, in rounds that have one of each; what came of every round.

        deadline: of `time.monotonic()`; nothing is begun that would not end by then.
        """


class Failed(Exception):
    """A candidate has no time, for this reason."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


def serve(arguments: Sequence[str], bench: Callable[[str, Post], Bench]) -> None:
    """Answer requests until the parent closes the pipe, or is gone.

    arguments: what the parent puts behind the worker's own: three descriptors, and the bytes of
    data that the process may have. bench: makes a bench from a task's payload and where it posts.
    """
    requests, answers, page, limit = map(int, arguments)
    _confine(limit)
    _Server(answers, Board(page), bench).run(requests)


def _confine(limit: int) -> None:
    """Limit memory, and leave no core files of crashes.

    The limit is on data: private memory that can be written to. A limit on the address space would
    also count what is only reserved, which thread pools, allocators and LLVM's linker do by the
    gigabyte. Beyond the limit an allocation fails, at once and in this process alone; a parent that
    watches how much a worker uses comes too late for the machine.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


class _Server:
    def __init__(self, answers: int, board: Board, bench: Callable[[str, Post], Bench]) -> None:
        self._answers, self._board, self._make = answers, board, bench
        self._payloads: dict[str, str] = {}
        self._benches: dict[str, Bench] = {}

    def run(self, requests: int) -> None:
        self._say(ready=os.getpid())
        with suppress(BrokenPipeError), open(requests, "rb") as lines:
            for line in lines:
                request = json.loads(line)
                name = request["task"]
                if "payload" in request:
                    self._payloads[name] = request["payload"]
                self._answer(request["do"], name, request)
                self._flush()
                self._board.post("idle", NOBODY)
                self._say(done=name)

    def _answer(self, what: str, name: str, request: Mapping[str, Any]) -> None:
        wanted = [(place, Candidate(*rest)) for place, *rest in request.get("wanted", ())]
        self._board.post("prepare", NOBODY)
        try:
            bench = self._bench(name)
            if what != "build":
                bench.prepare()
        except Exception as e:
            why = failure(e, "refused")
            for place, _ in wanted:
                self._fail(place, Failure(why.kind, f"the task cannot be prepared: {why.detail}"))
            return
        if what == "build":
            for place, candidate in wanted:
                self._build(bench, place, candidate)
        elif what == "measure":
            for found in bench.measure(wanted, request["rounds"], request["deadline"]):
                self._report(found)

    def _bench(self, name: str) -> Bench:
        """The task's bench, which from now on is the one used last."""
        bench = self._benches.pop(name, None) or self._make(self._payloads[name], self._board.post)
        while len(self._benches) >= TASKS:
            del self._benches[next(iter(self._benches))]
        self._benches[name] = bench
        return bench

    def _build(self, bench: Bench, place: int, candidate: Candidate) -> None:
        self._board.post("build", place)
        try:
            bench.build(place, candidate)
        except Exception as e:
            self._fail(place, failure(e, "build"))
        else:
            self._say(built=place)

    def _report(self, found: Sequence[tuple[int, Sample | Failure]]) -> None:
        samples = []
        for place, what in found:
            if isinstance(what, Failure):
                self._fail(place, what)
            else:
                samples.append([place, what.seconds, what.pressure])
        if samples:
            self._say(samples=samples)

    def _fail(self, place: int, why: Failure) -> None:
        self._say(failed=place, kind=why.kind, detail=why.detail[:DETAIL])

    def _say(self, **message: Any) -> None:
        rest = memoryview(json.dumps(message).encode() + b"\n")
        while rest:
            rest = rest[os.write(self._answers, rest) :]

    @staticmethod
    def _flush() -> None:
        """What candidates printed leaves with the request that they belong to."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()


def failure(error: Exception, otherwise: FailureKind) -> Failure:
    """An exception as a failure, of a kind that it implies or else of the one given."""
    if isinstance(error, Failed):
        return error.failure
    if isinstance(error, MemoryError):
        return Failure("memory", "an allocation was refused")
    return Failure(otherwise, _line(error))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
