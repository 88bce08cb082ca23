"""A worker for tests: every candidate's config says what it does, and in which step."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

# The tuner alone, without the compiler that `import tilewright` brings: workers start sooner.
package = sys.modules["tilewright"] = ModuleType("tilewright")
package.__path__ = [str(Path(__file__).parents[2])]

from tilewright.autotune.board import NOBODY, Step  # noqa: E402
from tilewright.autotune.outcome import Failure  # noqa: E402
from tilewright.autotune.serving import Failed, Post, Wanted, serve  # noqa: E402
from tilewright.autotune.statistics import Sample  # noqa: E402
from tilewright.autotune.task import Candidate  # noqa: E402

AGE = 1000
"""Seconds that a worker says it has been at what hangs: no test waits for that to be too long."""


def misbehave(what: str) -> None:
    if what == "stall":
        parent = os.getppid()
        while os.getppid() == parent:
            pass
        os._exit(1)
    elif what == "segv":
        ctypes.string_at(0)
    elif what == "exit":
        os._exit(0)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "hangup":
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which `nohup` has us ignore
        os.kill(os.getpid(), signal.SIGHUP)
    elif what == "abort":
        os.abort()
    elif what == "memory":
        held = []
        while True:
            held.append(bytearray(32 << 20))
    elif what == "shout":
        sys.stdout.write("\x1b[2J{}]" * 200_000 + "\n")
        os.write(2, bytes(range(256)) * 1000)
    elif what == "mute":
        os.close(1)
        os.close(2)
    elif what == "nonsense":
        os.write(int(sys.argv[2]), b"\xff{nonsense\n")
    elif what == "flood":
        while True:
            os.write(int(sys.argv[2]), b"x" * 65536)
    elif what == "fail":
        raise Failed(Failure("wrong", "off by one\nand two"))
    elif what == "raise":
        raise ValueError("no such tile")


class BadBench:
    """Payload "bad": cannot be prepared. A config: step (build or run), does, seconds, turn: in
    which of its runs it does that. once: a file, with which it does not do it any more. Who hangs
    has done so for a long time, who stalls has just begun."""

    def __init__(self, payload: str, post: Post) -> None:
        self.post, self.payload = post, payload
        self.runs: dict[int, int] = {}

    def prepare(self) -> None:
        if self.payload == "bad":
            raise ValueError("no such problem")
        if self.payload == "hang":
            self._hang("prepare", NOBODY)

    def build(self, place: int, candidate: Candidate) -> None:
        if candidate.config.get("step") == "build":
            self._misbehave("build", place, candidate)

    def measure(
        self, wanted: Wanted, rounds: Sequence[int], deadline: float
    ) -> Iterator[Sequence[tuple[int, Sample | Failure]]]:
        live = dict(wanted)
        for turn in range(max(rounds)):
            found: list[tuple[int, Sample | Failure]] = []
            for (place, c), n in zip(wanted, rounds, strict=True):
                if turn >= n or place not in live:
                    continue
                if time.monotonic() > deadline:
                    yield found
                    return
                self.post(*self._posted(place, c))
                try:
                    self._run(place, c)
                except Failed as e:
                    found.append((place, e.failure))
                    del live[place]
                else:
                    found.append((place, Sample(float(c.config.get("seconds", 1e-3)))))
            yield found

    def _posted(self, place: int, c: Candidate) -> tuple[Step, int]:
        return "run", int(c.config.get("posts", place))

    def _run(self, place: int, c: Candidate) -> None:
        self.runs[place] = self.runs.get(place, 0) + 1
        time.sleep(float(c.config.get("takes", 0)))
        if c.config.get("step") == "run" and self.runs[place] == int(c.config.get("turn", 1)):
            once = c.config.get("once")
            if once is None or not Path(str(once)).exists():
                if once is not None:
                    Path(str(once)).touch()
                self._misbehave("run", place, c)

    def _misbehave(self, step: Step, place: int, c: Candidate) -> None:
        if c.config["does"] == "hang":
            self._hang(step, place)
        misbehave(str(c.config["does"]))

    def _hang(self, step: Step, place: int) -> None:
        begun = time.monotonic_ns() - AGE * 10**9
        time.monotonic_ns = lambda: begun
        self.post(step, place)
        misbehave("stall")


if __name__ == "__main__":
    if "--stillborn" in sys.argv:
        sys.exit("no such library")
    serve(sys.argv[1:], BadBench)
