"""What the workers of a farm under test do: candidates take a moment, and leave a line in a log.

Workers import it by its name, from a folder on their path.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

from tilewright.autotune.farm import answer
from tilewright.autotune.outcome import Measurement, Outcome
from tilewright.autotune.runner import Request
from tilewright.autotune.task import Task


class Logging:
    """Numbered candidates take 1 + their number; the log says who ran what."""

    def run(
        self, task: Task, request: Request, deadline: float
    ) -> Iterator[tuple[int, Outcome]]:  # fmt: skip
        for place in request.candidates:
            number = task.space[place].config["n"]
            assert isinstance(number, int)
            time.sleep(0.03)
            with open(os.environ["FARM_LOG"], "a") as log:
                log.write(f"{os.getpid()} {task.key.problem} {number}\n")
            yield place, Measurement(1.0 + number, 1.0 + number, 1.0 + number, request.rounds)

    def stop(self) -> None: ...
    def close(self) -> None: ...


def measure(message: str) -> str:
    return answer(message, Logging())


def describe(_: str) -> str:
    return json.dumps({"device": "cpu", "pid": os.getpid()})


def nonsense(_: str) -> str:
    return "[1, 2"
