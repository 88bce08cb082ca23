"""Fills a store with the code of all parts of `check.py`, without a device.

Part by part: what is done stands in the store's `prepared.json`, with what it was made of, so that
a run may be stopped at any time, by its own limit, too, and another one goes on. The code itself is
in the store as soon as it is made.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tilewright.compiler.runtime.gpu_code import makers
from tilewright.compiler.store import source_digest

Row = dict[str, Any]
Run = Callable[[str, float], Iterator[Row]]
"""The rows of a part by its name, within so many seconds. Raises `Lost`."""
FILE: Final = "prepared.json"
LEAST: Final = 10.0
"""Seconds without which no part is begun: to start Python and Numba takes some."""


class Lost(Exception):
    """A process was stopped, or ended by itself with a failure."""


@dataclass
class Prepared:
    """What a store has been filled with. made_by: as TILEWRIGHT_GPU_CODE has it. source: a hash of
    what decides the code. parts: seconds by name, of all runs that a part took."""

    arch: str
    seed: int
    made_by: str
    source: str
    parts: dict[str, float] = field(default_factory=dict)
    begun: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = folder / f"{FILE}.{os.getpid()}"
        aside.write_text(json.dumps(vars(self), indent=1) + "\n", encoding="utf-8")
        os.replace(aside, folder / FILE)


def read(folder: Path | None, arch: str) -> Prepared | None:
    """What a folder was filled with for an architecture. None for nothing, or nothing readable."""
    if folder is None:
        return None
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
        found = Prepared(**said)
    except (OSError, ValueError, TypeError):
        return None
    return found if found.arch == arch else None


def now(arch: str, seed: int) -> Prepared:
    """What would be made here and now."""
    made_by = ",".join(f"{k}={v}" for k, v in makers().items())
    return Prepared(arch, seed, made_by, source())


def source() -> str:
    """A hash of all that decides which problems there are and what code is made for them."""
    root = Path(__file__).parents[2]
    files = [f for folder in ("ops", "compiler", "benchmarks/gpu")
             for f in sorted((root / folder).rglob("*.py"))]  # fmt: skip
    return source_digest(
        [*files, *(root / "benchmarks" / n for n in ("models.py", "torch_models.py"))]
    )


def prepare(
    names: Sequence[str], wanted: Prepared, folder: Path, run: Run, until: float, side_by_side: int
) -> tuple[list[str], list[str]]:
    """Do all parts that are not done, and say so in the folder after each. until: on the clock of
    `time.monotonic`. Returns what failed, with the reason, and what there was no time for."""
    found = read(folder, wanted.arch)
    same = found is not None and (found.seed, found.made_by, found.source) == (
        wanted.seed, wanted.made_by, wanted.source)  # fmt: skip
    state = found if found is not None and same else wanted
    failed: list[str] = []
    left: list[str] = []
    lock = threading.Lock()

    def part(name: str) -> None:
        if name in state.parts:
            print(f"{name:20s} is there", flush=True)
            return
        began, at, wrong = time.monotonic(), name, []
        if until - began < LEAST:
            left.append(name)
            return
        try:
            for row in run(name, until - began):
                at = row.get("at", at)
                wrong += [f"{row['name']}: {row['error']}"] if "error" in row else []
        except Lost as e:
            if time.monotonic() < until:
                wrong.append(f"{name} at {at}: {e}")
            else:
                left.append(name)
        with lock:
            taken = state.begun.pop(name, 0.0) + time.monotonic() - began
            done = not wrong and name not in left
            (state.parts if done else state.begun)[name] = taken
            failed.extend(wrong)
            state.write(folder)
        how = "" if done else f", at {at}" if name in left else ", FAILED"
        print(f"{name:20s} {taken:.0f} s{how}", flush=True)

    with ThreadPoolExecutor(side_by_side) as pool:
        list(pool.map(part, names))
    return failed, left
