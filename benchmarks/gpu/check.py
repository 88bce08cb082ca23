"""Everything that one wants to know of a GPU's kernels, in one command (docs/gpu.md):

    python benchmarks/gpu/check.py                       450 seconds at most
    python benchmarks/gpu/check.py --budget 120          the most important of it
    python benchmarks/gpu/check.py --only ladder calibration
    python benchmarks/gpu/check.py --only families products resnet50
    python benchmarks/gpu/check.py --prepare sm_90       no device: fills the store beforehand
    python benchmarks/gpu/check.py --prepare sm_90 --budget 400     some of it; the next run goes on

First the ladder, the smallest kernels for every thing that others consist of; then what the device
does at most, which is what `kernels/gpu_model.py` has to know; whether the kernels of all templates
are right; then products, ResNet-50, memory-bound kernels, convolutions, attention, launches, and
other models. Every part is a process with a time limit, so that a kernel that hangs or faults costs
its own part at most, and every stage has its share of the time. Rows are in the files gpu_*.json of
the output folder as soon as they are known, so that what is cut off is not lost; the table ends
with what every stage found and what failed, in less than 8,000 characters, and the exit status
says whether anything did.

It takes this package with numba-cuda, or a store that was filled where that is, and torch with CUDA
for what stands beside it. `TILEWRIGHT_CACHE` names the store.
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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import preparing  # noqa: E402
from machine import about  # noqa: E402
from preparing import Lost  # noqa: E402
from sheet import RESULTS, Sheet  # noqa: E402

from tilewright.compiler.runtime.gpu_code import VARIABLE  # noqa: E402
from tilewright.compiler.store import cache_directory  # noqa: E402

Row = dict[str, Any]
PROGRAM: Final = (sys.executable, str(Path(__file__).with_name("part.py")))
FAMILIES: Final = ("gpu_wgmma", "gpu_mma", "gpu_attention_wgmma", "gpu_attention_mma",
                   "gpu_attention_tiles", "gpu_winograd", "gpu_tiles", "gpu_strips", "gpu_nest",
                   "gpu_recurrent",
                   "gpu_unpool", "recurrent", "arg", "top_k", "scan", "scatter",
                   "unpool")  # fmt: skip
"""Templates by name, those that may go wrong in the most ways first."""
MODELS: Final = ("transformer", "mobilenet", "vgg_cifar", "squeezenet", "mlp", "digitnet",
                 "gru_sent", "segnet", "densenet121")  # fmt: skip
SHARES: Final = {"ladder": 0.2, "calibration": 0.1, "families": 0.35, "beside": 0.35}
"""Of the time, at most, where all stages are wanted; what one leaves is for those behind it."""
LEAST: Final = 5.0
"""Seconds without which no process is started."""
ENDING: Final = 20.0
"""Seconds that a process has to end in, after its last row or when it was killed: a driver that
cannot stop a kernel may keep it for good."""
SHOWN, WIDTH = 24, 200
"""Failures that the end lists, and characters of each; the files have all of them."""
SILENCE: Final = 40.0
"""Seconds that one candidate of a family may take: if it hangs, others still have their turn."""
RESTARTS: Final = 3
"""Of a family's process after one was lost: it goes on behind the case that it was at."""


@dataclass(frozen=True)
class Part:
    """A process: its arguments, the seconds it may take, the file its rows go to, and the seconds
    that may pass between two of them."""

    name: str
    args: tuple[str, ...]
    seconds: float
    file: str
    silence: float = float("inf")


def rungs(names: Sequence[str]) -> list[Part]:
    return [Part(f"ladder {k:02d}: {n}", ("rung", str(k)), 30, "ladder")
            for k, n in enumerate(names)]  # fmt: skip


def families(seed: int) -> list[Part]:
    return [Part(n, ("family", n, "--seed", str(seed)), 150, "families", SILENCE)
            for n in FAMILIES]  # fmt: skip


def parts() -> list[Part]:
    """What stands beside others, the most important first."""

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
        self.found: list[str] = []
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
                self.right[part.file] = self.right.get(part.file, 0) + 1
                self.right[part.name] = self.right.get(part.name, 0) + 1
            if not row.get("ok") or "measured" in row or "chip" in row:
                print(line(row), flush=True)

    def lost(self, part: Part, at: str, why: str) -> None:
        """A process ended before its part did."""
        self.take(part, {"name": at or part.name, "error": why})

    def tell(self, text: str) -> None:
        """Show what a stage found, now and at the end."""
        self.found.append(text)
        print(text, flush=True)

    def summary(self) -> str:
        """What stages found, and the first of what failed: rungs ahead of what stands on them."""
        failed = sorted(self.failed, key=lambda x: (not x.startswith("ladder"), x))
        lines = [*self.found, f"{len(failed)} failed", *(f"  {_cut(x)}" for x in failed[:SHOWN])]
        more = len(failed) - SHOWN
        return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else [])])


def line(row: Row) -> str:
    """A row of any kind, in one line."""
    name = str(row["name"])[:76]
    if "error" in row:
        return f"{name:76s}  FAILED {_cut(row['error'])}"
    if "skipped" in row:
        return f"{name:76s}  left out: {row['skipped']}"
    if "chip" in row:
        return f"{name}: {json.dumps(row['chip'])}"
    if "measured" in row:
        beside = f", {row['per_cycle']:.5g} in a cycle" if "per_cycle" in row else ""
        table = f", {row['table']:.5g} in the table" if "table" in row else ""
        return f"{name:76s}  {row['measured']:.5g} {row['unit']}{beside}{table}"
    if "warm" in row:
        shown = [f"{n} {_each(v['median'], row)}" for n, v in row["warm"].items()]
        cold = row["cold"].get("tilewright")
        shown += [f"cold {_each(cold['median'], row)}"] if cold else []
        shown += [f"{row['of_best_rival']:.2f} of the best rival"] if "of_best_rival" in row else []
        return f"{name:76s}  {', '.join(shown)}"
    taken = ", ".join(f"{n} {v['median'] * 1e6:.1f} us" for n, v in row["seconds"].items())
    failed = "".join(f"; {n} failed: {why[:80]}" for n, why in row.get("failed", {}).items())
    return f"{name:76s}  {taken}{failed}"


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def _each(seconds: float, row: Row) -> str:
    rate = (f"{row['flops'] / seconds / 1e12:.1f} TFLOP/s" if row.get("flops")
            else f"{row['bytes'] / seconds / 1e9:.0f} GB/s")  # fmt: skip
    return f"{seconds * 1e6:.1f} us {rate}"


_children: Final[set[int]] = set()
"""Processes that run now, each with those that it started in a group of its own."""


def stop(*_: object) -> None:
    """End at once, with all processes: what is known is in files."""
    for pid in list(_children):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    os._exit(128 + signal.SIGTERM)


def run(program: Sequence[str], seconds: float, silence: float = float("inf")) -> Iterator[Row]:
    """The rows of a process as they come. Raises Lost, also when its time is over, or none came for
    so long."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=errors, text=True,
                                 start_new_session=True)  # fmt: skip
        _children.add(child.pid)
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(child.stdout, lines), daemon=True)
        reader.start()
        deadline = time.monotonic() + seconds
        until = deadline
        try:
            while True:
                until = min(deadline, time.monotonic() + silence)
                text = lines.get(timeout=max(until - time.monotonic(), 0.0))
                if text is None:
                    break
                try:
                    row = json.loads(text)
                except ValueError:
                    continue  # what some library prints
                if isinstance(row, dict):
                    yield row
            status = child.wait(timeout=ENDING)
        except (queue.Empty, subprocess.TimeoutExpired):
            why = f"after {seconds:.0f} s" if until == deadline else f"after {silence:.0f} s at it"
            raise Lost(f"stopped {why}") from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=ENDING)
            _children.discard(child.pid)
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
    if end - time.monotonic() < LEAST:
        print(f"{part.name}: no time left", flush=True)
        return
    first: int | None = None
    for _ in range(1 + RESTARTS):
        at, number = "", None
        more = () if first is None else ("--first", str(first))
        try:
            for row in run((*program, *part.args, *more), end - time.monotonic(), part.silence):
                at, number = row.get("at", at), row.get("number", number)
                log.take(part, row)
            return
        except Lost as e:
            log.lost(part, at, str(e))
        if number is None or end - time.monotonic() < LEAST:
            return
        first = number + 1


@dataclass(frozen=True)
class Work:
    """What is to be done, stage by stage."""

    ladder: Sequence[Part] = ()
    calibration: Sequence[Part] = ()
    families: Sequence[Part] = ()
    beside: Sequence[Part] = ()
    files: Sequence[Part] = ()


def everything(
    work: Work, program: Sequence[str], until: float, log: Log, side_by_side: int
) -> None:
    """One stage after the other. Rungs and families run side by side, all that is timed alone;
    models' files are made meanwhile, and waited for by what needs them. A stage that others wait
    for may not take all the time."""
    stages = {"ladder": work.ladder, "calibration": work.calibration, "families": work.families,
              "beside": work.beside}  # fmt: skip
    whole = (until - time.monotonic()) / sum(SHARES[n] for n, chosen in stages.items() if chosen)
    with ThreadPoolExecutor(1) as other:
        made = {p.args[1]: other.submit(run_part, p, program, until, log) for p in work.files}
        for name, chosen in stages.items():
            if not chosen or name == "beside":
                continue
            end = min(until, time.monotonic() + SHARES[name] * whole)
            with ThreadPoolExecutor(1 if name == "calibration" else side_by_side) as pool:
                list(pool.map(lambda p, end=end: run_part(p, program, end, log), chosen))
            _told(name, chosen, log)
        for p in work.beside:
            if p.args[0] == "model" and p.args[1] in made:
                made[p.args[1]].result()
            run_part(p, program, until, log)


def _told(name: str, chosen: Sequence[Part], log: Log) -> None:
    """What a stage found."""
    if name == "ladder":
        wrong = sorted(x for x in log.failed if x.startswith("ladder"))
        first = f"the first that is wrong is {wrong[0]}" if wrong else "none is wrong"
        told = f"ladder: {log.right.get(name, 0)} of {len(chosen)} rungs are right, {_cut(first)}"
        log.tell(told)
    elif name == "families":
        for p in chosen:
            log.tell(f"{p.name:14s} {log.right.get(p.name, 0)} candidates are right")


def prepare(arch: str, names: Sequence[str], seed: int, budget: float, side_by_side: int) -> int:
    """Make the code of parts, without a device; the exit status: 0 for all of it, 1 where something
    failed, 3 where time was over."""
    folder = cache_directory()
    if folder is None:
        raise SystemExit("TILEWRIGHT_CACHE switches the store off: there is no place for code")

    def of(name: str, seconds: float) -> Iterator[Row]:
        return run((*PROGRAM, "prepare", name, "--arch", arch, "--seed", str(seed)), seconds)

    wanted = preparing.now(arch, seed)
    until = time.monotonic() + budget
    failed, left = preparing.prepare(names, wanted, folder, of, until, side_by_side)
    done = preparing.read(folder, arch) or wanted
    print(f"{folder} has {len(done.parts)} parts for {arch}, seed {seed}, made by {done.made_by}, "
          f"in {sum(done.parts.values()):.0f} s")  # fmt: skip
    print(f"no time left for: {' '.join(left) or 'none'}\nfailed: {len(failed)}")
    for text in failed:
        print(f"  {text}")
    return 1 if failed else 3 if left else 0


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument(
        "--budget", type=float, help="seconds, for everything (default 450, no limit for --prepare)"
    )
    p.add_argument("--seed", type=int, help="of the problems (default: the store's, or any)")
    p.add_argument("--only", nargs="*", default=[], help="stages, families, sets, models by name")
    p.add_argument("--jobs", type=int, default=max((os.cpu_count() or 2) - 2, 1))
    p.add_argument("--output", type=Path, default=RESULTS, help="folder")
    p.add_argument("--prepare", metavar="ARCH", default="")
    args = p.parse_args()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if args.prepare:
        names = ("ladder", "calibration", *FAMILIES, "products", "resnet50", "moving",
                 "convolutions", "attention", "launching", *MODELS)  # fmt: skip
        chosen = [n for n in names if is_wanted(n, args.only)]
        seed, budget = args.seed or 1, args.budget or float("inf")
        raise SystemExit(prepare(args.prepare, chosen, seed, budget, args.jobs))
    budget = args.budget or 450
    until = time.monotonic() + budget
    try:
        (found,) = run((*PROGRAM, "about"), 60)
    except Lost as e:
        raise SystemExit(f"no device to look at: {e}") from None
    known = preparing.read(cache_directory(), found["arch"])
    if known:
        os.environ.setdefault(VARIABLE, known.made_by)
    seed = args.seed if args.seed is not None else known.seed if known else int(time.time()) % 1000
    print(f"{found['device']} ({found['arch']}), driver {found['driver']}, seed {seed}")
    missing = [n for n, v in found["installed"].items() if v == "missing"]
    print(f"missing: {', '.join(missing) or 'nothing'}")
    print(f"code made before: {known.made_by if known else 'none'}", flush=True)
    if known and known.source != preparing.source():
        print("that code is of other source: what differs is made again, which takes its time")
    names = found.pop("rungs")
    del found["at"]
    log = Log(args.output, about(seed=seed, budget=budget, **found))
    everything(work_of(args.only, names, seed), PROGRAM, until, log, min(args.jobs, 6))
    print(f"\n{log.summary()}")
    print(f"rows are in {args.output}/gpu_*.json")
    raise SystemExit(bool(log.failed))


def is_wanted(name: str, only: Sequence[str]) -> bool:
    return not only or name in only or (name in FAMILIES and "families" in only)


def work_of(only: Sequence[str], names: Sequence[str], seed: int) -> Work:
    """The parts that names mean, all without any. names: of rungs."""
    beside = [x for x in parts() if is_wanted(x.name, only)]
    networks = dict.fromkeys(x.name for x in beside if x.args[0] == "model")
    return Work(
        rungs(names) if is_wanted("ladder", only) else (),
        [Part("calibration", ("calibration",), 60, "calibration")]
        if is_wanted("calibration", only) else (),
        [x for x in families(seed) if is_wanted(x.name, only)], beside,
        [Part(f"files of {n}", ("files", n), 300, "files") for n in networks],
    )  # fmt: skip


if __name__ == "__main__":
    main()
