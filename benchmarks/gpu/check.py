"""Everything that one wants to know of a GPU's kernels, in one command:

    python benchmarks/gpu/check.py                       450 seconds at most
    python benchmarks/gpu/check.py --budget 120          the most important of it
    python benchmarks/gpu/check.py --only products resnet50
    python benchmarks/gpu/check.py --prepare sm_90       no device: fills the store beforehand

First whether kernels are right, then products, ResNet-50, memory-bound kernels, convolutions,
attention, launches, and other models. Every part is a process with a time limit, so that a kernel
that hangs or faults costs its own part at most. Rows are in benchmarks/results/gpu_*.json as soon
as they are known; the table ends with what failed, and so does the exit status.

It takes this package with numba-cuda, and torch with CUDA for everything but the first part.
`TILEWRIGHT_CACHE` names the store.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from machine import about  # noqa: E402
from sheet import RESULTS, Sheet  # noqa: E402

Row = dict[str, Any]
PROGRAM: Final = (sys.executable, str(Path(__file__).with_name("part.py")))
FAMILIES: Final = ("gpu_wgmma", "gpu_mma", "gpu_winograd", "gpu_tiles", "gpu_nest",
                   "gpu_recurrent", "gpu_unpool", "recurrent", "arg", "top_k", "scan", "scatter",
                   "unpool")  # fmt: skip
MODELS: Final = ("transformer", "mobilenet", "vgg_cifar", "squeezenet", "mlp", "digitnet",
                 "gru_sent", "segnet", "densenet121")  # fmt: skip
RESTARTS: Final = 3
"""Of a family's process after one was lost: it goes on behind the case that it was at."""


@dataclass(frozen=True)
class Part:
    """A process: its arguments, the seconds it may take, and the file its rows go to."""

    name: str
    args: tuple[str, ...]
    seconds: float
    file: str


def parts() -> list[Part]:
    """All but the families, the most important first."""

    def models(name: str, seconds: float, *more: str) -> list[Part]:
        return [Part(name, ("model", name, "--batch", batch, "--precision", kind, *more), seconds,
                     "models")
                for kind in ("f32", "bf16", "tf32") for batch in ("1", "32")]  # fmt: skip

    def kernels(name: str, seconds: float) -> Part:
        return Part(name, ("kernels", name), seconds, "kernels")

    return [
        kernels("products", 80), *models("resnet50", 25),
        Part("copying", ("copying",), 20, "kernels"),
        kernels("moving", 30), kernels("convolutions", 60), kernels("attention", 30),
        Part("launching", ("launching",), 20, "kernels"),
        *(p for name in MODELS for p in models(name, 20)), *models("resnet50", 120, "--autotune"),
    ]  # fmt: skip


class Log:
    """Rows as they come: into files, and a line each on the screen."""

    def __init__(self, folder: Path, settings: Row) -> None:
        self.folder, self.settings = folder, settings
        self.failed: list[str] = []
        self.right: dict[str, int] = {}
        self._sheets: dict[str, Sheet] = {}
        self._lock = threading.Lock()

    def take(self, part: Part, row: Row) -> None:
        """Keep a row, and show it."""
        if "name" not in row:
            return
        with self._lock:
            sheet = self._sheets.get(part.file)
            if sheet is None:
                sheet = Sheet(self.folder / f"gpu_{part.file}.json")
                self._sheets[part.file] = sheet
            sheet.put(row["name"], {"about": self.settings, **row})
            if "error" in row:
                self.failed.append(f"{row['name']}: {row['error']}")
            if row.get("ok"):
                self.right[part.name] = self.right.get(part.name, 0) + 1
            if not row.get("ok"):
                print(line(row), flush=True)

    def lost(self, part: Part, at: str, why: str) -> None:
        """A process ended before its part did."""
        self.take(part, {"name": at or part.name, "error": why})


def line(row: Row) -> str:
    """A row of any kind, in one line."""
    name = str(row["name"])[:76]
    if "error" in row:
        return f"{name:76s}  FAILED {row['error']}"
    if "skipped" in row:
        return f"{name:76s}  left out: {row['skipped']}"
    if "warm" in row:
        shown = [f"{n} {_each(v['median'], row)}" for n, v in row["warm"].items()]
        cold = row["cold"].get("tilewright")
        shown += [f"cold {_each(cold['median'], row)}"] if cold else []
        shown += [f"{row['of_best_rival']:.2f} of the best rival"] if "of_best_rival" in row else []
        return f"{name:76s}  {', '.join(shown)}"
    taken = ", ".join(f"{n} {v['median'] * 1e6:.1f} us" for n, v in row["seconds"].items())
    failed = "".join(f"; {n} failed: {why[:80]}" for n, why in row.get("failed", {}).items())
    return f"{name:76s}  {taken}{failed}"


def _each(seconds: float, row: Row) -> str:
    rate = (f"{row['flops'] / seconds / 1e12:.1f} TFLOP/s" if row.get("flops")
            else f"{row['bytes'] / seconds / 1e9:.0f} GB/s")  # fmt: skip
    return f"{seconds * 1e6:.1f} us {rate}"


class Lost(Exception):
    """A process was stopped, or ended by itself with a failure."""


def run(program: Sequence[str], seconds: float) -> Iterator[Row]:
    """The rows of a process as they come. Raises Lost, also when its time is over."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=errors, text=True,
                                 start_new_session=True)  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(child.stdout, lines), daemon=True)
        reader.start()
        deadline = time.monotonic() + seconds
        try:
            while True:
                text = lines.get(timeout=max(deadline - time.monotonic(), 0.0))
                if text is None:
                    break
                try:
                    row = json.loads(text)
                except ValueError:
                    continue  # what some library prints
                if isinstance(row, dict):
                    yield row
            status = child.wait(timeout=5)
        except (queue.Empty, subprocess.TimeoutExpired):
            raise Lost(f"stopped after {seconds:.0f} s") from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if status:
            errors.seek(0)
            said = errors.read().strip().splitlines()
            raise Lost(f"exit status {status}: {' / '.join(said[-2:])[-300:]}")


def _read(stream: Any, lines: queue.Queue[str | None]) -> None:
    for text in stream:
        lines.put(text)
    lines.put(None)


def run_part(part: Part, program: Sequence[str], until: float, log: Log) -> None:
    """All rows of a part. Where a family's process is lost, another goes on behind its case."""
    end = min(time.monotonic() + part.seconds, until)
    first: int | None = None
    for _ in range(1 + RESTARTS):
        at, number = "", None
        more = () if first is None else ("--first", str(first))
        try:
            for row in run((*program, *part.args, *more), end - time.monotonic()):
                at, number = row.get("at", at), row.get("number", number)
                log.take(part, row)
            return
        except Lost as e:
            log.lost(part, at, str(e))
        if number is None or end - time.monotonic() < 5:
            return
        first = number + 1


def everything(
    chosen: Sequence[Part], families: Sequence[Part], program: Sequence[str], until: float,
    log: Log, side_by_side: int,
) -> None:  # fmt: skip
    """The families side by side, then one part after another, as long as there is time."""
    with ThreadPoolExecutor(side_by_side) as pool:
        list(pool.map(lambda p: run_part(p, program, until, log), families))
    for p in families:
        print(f"{p.name:14s} {log.right.get(p.name, 0)} candidates are right")
    for p in chosen:
        if until - time.monotonic() < 5:
            print(f"{' '.join(p.args)}: no time left")
            continue
        run_part(p, program, until, log)


def prepare(arch: str, names: Sequence[str], side_by_side: int) -> None:
    """Make the code of all parts, without a device."""
    log = Log(Path(tempfile.mkdtemp()), {})
    made = [Part(n, ("prepare", n, "--arch", arch), 3600, "prepared") for n in names]
    with ThreadPoolExecutor(side_by_side) as pool:
        list(pool.map(lambda p: run_part(p, PROGRAM, float("inf"), log), made))
    print(f"{len(names)} parts, failed: {log.failed or 'none'}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--budget", type=float, default=450, help="seconds, for everything")
    p.add_argument("--seed", type=int, default=int(time.time()) % 1000, help="of the problems")
    p.add_argument("--only", nargs="*", default=[], help="names of families, sets, models")
    p.add_argument("--jobs", type=int, default=max((os.cpu_count() or 2) - 2, 1))
    p.add_argument("--output", type=Path, default=RESULTS, help="folder")
    p.add_argument("--prepare", metavar="ARCH", default="")
    args = p.parse_args()
    if args.prepare:
        names = ("products", "resnet50", "moving", "convolutions", "attention", *MODELS)
        prepare(args.prepare, [n for n in names if not args.only or n in args.only], args.jobs)
        return
    until = time.monotonic() + args.budget
    try:
        (found,) = run((*PROGRAM, "about"), 60)
    except Lost as e:
        raise SystemExit(f"no device to look at: {e}") from None
    print(f"{found['device']} ({found['arch']}), driver {found['driver']}, seed {args.seed}")
    missing = [n for n, v in found["installed"].items() if v == "missing"]
    print(f"missing: {', '.join(missing) or 'nothing'}", flush=True)
    del found["at"]
    log = Log(args.output, about(seed=args.seed, budget=args.budget, **found))
    wanted = args.only
    families = [Part(n, ("family", n, "--seed", str(args.seed)), 150, "families")
                for n in FAMILIES if not wanted or n in wanted]  # fmt: skip
    chosen = [x for x in parts() if not wanted or x.name in wanted]
    everything(chosen, families, PROGRAM, until, log, min(args.jobs, 6))
    print(f"\n{len(log.failed)} failed")
    for text in log.failed:
        print(f"  {text}")
    print(f"rows are in {args.output}/gpu_*.json")
    raise SystemExit(bool(log.failed))


if __name__ == "__main__":
    main()
