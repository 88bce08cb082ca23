"""Tuning on the machines of a dask.distributed cluster.

Tasks go there as data, JSON text in and JSON text out of one function that every worker of the
cluster can import; what comes back are outcomes. Each worker is a runner of its own (`FarmRunner`),
for the device that it says it is. A worker that is gone is a runner that is lost: the session gives
what it had begun to another one, and keeps all that it had answered.

dask.distributed is an optional dependency: `pip install 'tilewright[farm]'`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from threading import Event, Thread
from typing import Any, Final

from .errors import RunnerLost, TunerError
from .outcome import Outcome
from .row import outcome_from_data, outcome_to_data, told
from .runner import Request, Runner
from .task import Candidate, Key, Task

POLL_SECONDS: Final = 0.25
"""How often a runner looks whether its worker is still there."""

FETCH_SECONDS: Final = 5.0
"""For an answer that is there to come here; then it looks again whether its worker still is."""

LATE_SECONDS: Final = 0.5
"""How long after its deadline an answer may be on its way."""

CONNECT_SECONDS: Final = 10.0

DESCRIBE_SECONDS: Final = 20.0
"""For workers to say what they are: they may have to load what they need for that."""

Work = Callable[[str], str]


class Farm:
    """The workers of one cluster. address: of its scheduler, such as "tcp://10.0.0.1:8786".

    measure, describe: functions that workers can import. `measure` answers what `ask` writes, by
    `answer`; `describe` ignores its argument and says in JSON what the worker is. Raises TunerError
    when dask.distributed is not installed or there is no scheduler.
    """

    def __init__(self, address: str, measure: Work, describe: Work) -> None:
        distributed = _distributed()
        try:
            self._client = distributed.Client(address, timeout=CONNECT_SECONDS,
                                              set_as_default=False)  # fmt: skip
        except (OSError, ValueError, TypeError) as e:
            raise TunerError(f"no scheduler answers at {address!r}: {e}") from e
        self._measure, self._describe = measure, describe

    def members(self) -> Mapping[str, Mapping[str, Any] | str]:
        """What every worker says of itself, by its address; text where it could not, or has not
        done so in time."""
        told: dict[str, object] = {}

        def ask(address: str) -> None:
            with suppress(OSError, CancelledError, RuntimeError):  # it is left, or leaves
                told.update(self._client.run(self._describe, "", workers=[address],
                                             on_error="return"))  # fmt: skip

        # Each by a thread of its own, as nothing else ends the wait for one that hangs.
        every = sorted(self._client.nthreads())
        asking = [Thread(target=ask, args=(a,), daemon=True) for a in every]
        for thread in asking:
            thread.start()
        until = time.monotonic() + DESCRIBE_SECONDS
        for thread in asking:
            thread.join(max(0.0, until - time.monotonic()))
        late = f"no answer within {DESCRIBE_SECONDS:g} s"
        return {a: _object(told[a]) if a in told else late for a in every}

    def runner(self, address: str, device: str | None) -> FarmRunner:
        """A runner that has one worker do its work. device: what tasks it gets."""
        return FarmRunner(self._client, address, self._measure, device)

    def close(self) -> None:
        """Leave the cluster; its workers stay."""
        self._client.close()


class FarmRunner:
    """One worker of a cluster, as a Runner. `device` and `origin` are what a session reads."""

    def __init__(self, client: Any, address: str, measure: Work, device: str | None) -> None:
        self.device = device
        self.origin = f"farm {address}"
        self._client, self._address, self._measure = client, address, measure
        self._stopped = Event()

    def run(
        self, task: Task, request: Request, deadline: float
    ) -> Iterator[tuple[int, Outcome]]:  # fmt: skip
        """As `Runner.run`; all outcomes come at the end. Raises RunnerLost when the worker or its
        scheduler is gone, TunerError when what it answers makes no sense."""
        left = deadline - time.monotonic()
        if left <= 0:
            return
        try:
            text = self._answer(ask(task, request, left), deadline)
        except (OSError, CancelledError) as e:
            # Errors of dask's connections, and what its client makes of work that it gives up.
            raise RunnerLost(f"{self.origin}: {e}") from e
        if text is not None:
            yield from outcomes(text, request)

    def _answer(self, message: str, deadline: float) -> str | None:
        future = self._client.submit(self._measure, message, workers=[self._address],
                                     allow_other_workers=False, pure=False, retries=0)  # fmt: skip
        try:
            while not self._stopped.is_set() and time.monotonic() < deadline + LATE_SECONDS:
                try:
                    error = future.exception(timeout=POLL_SECONDS)
                    if error is None:  # the answer is still with the worker, who may leave now
                        return str(future.result(timeout=FETCH_SECONDS))
                except TimeoutError:
                    if self._is_gone():
                        raise RunnerLost(f"{self.origin} left") from None
                    continue
                if isinstance(error, TunerError) or not self._is_gone():
                    raise TunerError(f"{self.origin}: {error}") from error
                raise RunnerLost(f"{self.origin} left") from error
            return None
        finally:
            future.cancel()

    def _is_gone(self) -> bool:
        return self._address not in self._client.nthreads()

    def stop(self) -> None:
        """As `Runner.stop`. The worker finishes by itself what it has begun."""
        self._stopped.set()

    def close(self) -> None:
        """The connection is the farm's."""


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as e:
        raise TunerError("a farm needs dask.distributed: pip install 'tilewright[farm]'") from e
    return distributed


def _object(text: object) -> Mapping[str, Any] | str:
    try:
        found = json.loads(text) if isinstance(text, str) else str(text)
    except ValueError as e:
        return f"it describes itself in a way that is no JSON: {e}"
    return found if isinstance(found, dict) else str(found)


# --------------------------------------------------------------------------- the messages


def ask(task: Task, request: Request, seconds: float) -> str:
    """A request as text: only the candidates that it is about, at most so many seconds."""
    return json.dumps({
        "key": [task.key.problem, task.key.device, task.key.numerics],
        "payload": task.payload, "label": task.label, "rounds": request.rounds, "seconds": seconds,
        "candidates": [[c.template, c.version, dict(c.config)]
                       for c in (task.space[k] for k in request.candidates)],
    })  # fmt: skip


def answer(message: str, runner: Runner) -> str:
    """What the runner makes of a request: outcomes in the order of its candidates, null for those
    that no time was left for. Raises TunerError for what is no request."""
    try:
        data = json.loads(message)
        space = tuple(
            Candidate(str(t), int(v), dict(config)) for t, v, config in data["candidates"]
        )
        problem, device, numerics = map(str, data["key"])
        task = Task(Key(problem, device, numerics), space, payload=str(data["payload"]),
                    label=str(data["label"]))  # fmt: skip
        rounds, seconds = int(data["rounds"]), float(data["seconds"])
    except (ValueError, KeyError, TypeError) as e:
        raise TunerError(f"not a request of a farm: {e!r}") from e
    found: list[Outcome | None] = [None] * len(space)
    deadline = time.monotonic() + seconds
    for place, outcome in runner.run(task, Request(tuple(range(len(space))), rounds), deadline):
        found[place] = outcome
    return json.dumps([None if o is None else outcome_to_data(told(o)) for o in found])


def outcomes(text: str, request: Request) -> list[tuple[int, Outcome]]:
    """What `answer` wrote, nothing in it that no row may hold. Raises TunerError."""
    try:
        data = json.loads(text)
        pairs = zip(request.candidates, data, strict=True)
        return [(place, outcome_from_data(d)) for place, d in pairs if d is not None]
    except (ValueError, TypeError, RecursionError, TunerError) as e:
        raise TunerError(f"not an answer of a farm: {e!r}") from e


def on_device(task: Task, device: str) -> Task:
    """The same task for another device: records of it are that device's."""
    return replace(task, key=replace(task.key, device=device))
