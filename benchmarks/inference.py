"""Latency of whole models beside the runtimes that are installed, and what they cost a process.

    python benchmarks/inference.py                     all models, batch 1 and 8, 1 and 2 threads
    python benchmarks/inference.py resnet50 --threads 1 --batches 1 --seconds 20
    python benchmarks/inference.py --peers torch,ncnn  adds those that are slow to prepare
    python benchmarks/report.py                        makes docs/performance.md of the results

Every combination is measured by `tilewright bench` in a process of its own, where all contestants
take turns with the same thread count. Results are written to the JSON file as they come, with the
versions, the commit, and how busy others kept the machine; a second run measures only what the file
lacks, so it goes on after an interruption and adds peers to a table (`--again` measures anew).
Memory and the seconds to the first result are taken from processes that run one contestant alone;
their outputs are compared with float64 (`accuracy.py`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import accuracy
import forms
import models
import processes
from machine import HERE, about, neighbours

PEERS = ("onnxruntime", "openvino", "torch", "ncnn")
DEFAULT = HERE / "results" / "inference.json"

TIMEOUT = 400.0
"""Seconds for one combination; a runtime that takes longer to prepare does not take part."""

Result = dict[str, Any]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("models", nargs="*", help=f"of: {', '.join(models.NAMES)}")
    p.add_argument("--batches", default="1,8", metavar="1,8")
    p.add_argument("--threads", default="1,2", metavar="1,2")
    p.add_argument("--peers", default="onnxruntime,openvino", metavar="a,b",
                   help=f"of: {', '.join(PEERS)}")  # fmt: skip
    p.add_argument("--seconds", type=float, default=4.0, help="of measuring per combination")
    p.add_argument("--parts", default="latency,processes", metavar="a,b",
                   help="latency, processes (seconds to the first result and memory, at the "
                   "smallest batch and the most threads)")  # fmt: skip
    p.add_argument("--output", type=Path, default=DEFAULT, help=f"JSON file (default: {DEFAULT})")
    p.add_argument(
        "--disturbed",
        type=float,
        default=float("inf"),
        metavar="X",
        help="measure anew where others kept more than X processors busy",
    )
    p.add_argument("--again", action="store_true", help="measure also what the file holds")
    args = p.parse_args()
    names = args.models or list(models.NAMES)
    batches, threads = _numbers(args.batches), _numbers(args.threads)
    peers = args.peers.split(",")
    unknown = [x for x in (*names, *peers) if x not in (*models.NAMES, *PEERS)]
    if unknown:
        p.error(f"no model or peer {unknown[0]!r}")
    book = Book(args.output)
    if "latency" in args.parts:
        for name, batch in ((n, b) for b in batches for n in names):
            for count in threads:
                some = (
                    peers if args.again else book.missing(name, batch, count, peers, args.disturbed)
                )
                if some:
                    book.add("latency", latency(name, batch, count, some, args.seconds))
                    print(line(book.data["latency"][-1]), flush=True)
    if "processes" in args.parts:
        for name, contestant in ((n, c) for n in names for c in ("tilewright", *peers)):
            batch, count = min(batches), max(threads)
            if args.again or not book.has_process(name, batch, count, contestant):
                book.add("processes", process(name, batch, count, contestant))
                print(process_line(book.data["processes"][-1]), flush=True)
    print(f"written to {args.output}")


class Book:
    """The results so far, on disk after each. Same combination and same contestants: the newest
    result stands."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.data: dict[str, Any] = {"about": about(), "latency": [], "processes": []}
        if file.exists():
            self.data |= json.loads(file.read_text())

    def missing(
        self, name: str, batch: int, threads: int, peers: Sequence[str],
        disturbed: float = float("inf"),
    ) -> list[str]:  # fmt: skip
        """Peers without a result for a combination, or only with one that others disturbed by more
        than so many processors."""
        done = {p for r in self.data["latency"] if _key(r) == (name, batch, threads)
                and r["about"]["foreign_processors"] <= disturbed
                for p in (*r.get("peers", ()), *r.get("unavailable", ()))}  # fmt: skip
        return [p for p in peers if p not in done]

    def has_process(self, name: str, batch: int, threads: int, contestant: str) -> bool:
        return any(_key(r) == (name, batch, threads) and r["contestant"] == contestant
                   for r in self.data["processes"])  # fmt: skip

    def add(self, part: str, result: Result) -> None:
        self.data[part] = [*self._others(part, result), result]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(new, self.file)

    def _others(self, part: str, new: Result) -> Iterator[Result]:
        for r in self.data[part]:
            if _key(r) != _key(new) or r.get("contestant") != new.get("contestant"):
                yield r
            elif part == "latency":
                kept = {
                    f: {k: v for k, v in r.get(f, {}).items()
                        if k not in (*new["peers"], *new["unavailable"])}
                    for f in ("peers", "unavailable")
                }  # fmt: skip
                if any(kept.values()):
                    yield r | kept


def _key(r: Result) -> tuple[str, int, int]:
    return r["model"], r["batch"], r["threads"]


def latency(name: str, batch: int, threads: int, peers: Sequence[str], seconds: float) -> Result:
    """What `tilewright bench --json` says of one combination."""
    path = models.path(name, batch)
    command = [sys.executable, "-m", "tilewright", "bench", str(path), "--json", "--threads",
               str(threads), "--seconds", str(seconds)]  # fmt: skip
    lacking: dict[str, str] = {}
    taking_part = []
    for peer in peers:
        try:
            if importlib.util.find_spec(peer) is None:
                raise forms.NoForm(f"is not installed: pip install {peer}")
            file = forms.form(peer, name, batch)
        except Exception as e:  # converters raise what they like
            lacking[peer] = str(e).strip().splitlines()[0]
            continue
        taking_part.append(peer)
        command += ["--peer-model", f"{peer}={file}"] if file is not None else []
    out: Result = {"model": name, "batch": batch, "threads": threads}
    with neighbours() as busy:
        try:
            done = subprocess.run([*command, "--peers", ",".join(taking_part)], text=True,
                                  capture_output=True, timeout=TIMEOUT, check=False)  # fmt: skip
            why = (done.stderr.strip().splitlines() or ["it crashed"])[-1]
        except subprocess.TimeoutExpired:
            done, why = None, f"took more than {TIMEOUT:g} s"
    out["about"] = about(seconds=seconds) | busy
    if done is None or done.returncode:
        return out | {"error": why, "peers": {}, "unavailable": dict.fromkeys(taking_part, why)}
    found: Result = json.loads(done.stdout)
    return found | out | {"unavailable": found["unavailable"] | lacking}


def process(name: str, batch: int, threads: int, contestant: str) -> Result:
    """Seconds to the first result and memory of one contestant."""
    out: Result = {"model": name, "batch": batch, "threads": threads, "contestant": contestant}
    try:
        form = forms.form(contestant, name, batch)
    except Exception as e:  # converters raise what they like
        return out | {"error": str(e).strip().splitlines()[0]}
    feeds = models.sample(name, batch=batch)
    with neighbours() as busy:
        found, outputs = processes.measure(contestant, models.path(name, batch), feeds, threads,
                                           form)  # fmt: skip
    out |= {"about": about() | busy} | found
    if outputs and batch == 1:
        out["accuracy"] = accuracy.errors(outputs, accuracy.truth(name))
    return out


def line(r: Result) -> str:
    """One row: milliseconds, and how many times as long each peer takes."""
    text = f"{r['model']:14s} batch {r['batch']} threads {r['threads']} "
    if "error" in r:
        return text + r["error"]
    ours = r["latency"]
    text += f"{ours['median_seconds'] * 1e3:9.3f} ms +-{ours['spread']:.0%}"
    for peer, x in r["peers"].items():
        text += (f"   {peer} {x['median_seconds'] * 1e3:.3f} ms x{x['speedup']:.2f} "
                 f"({x['difference']:.0e})")  # fmt: skip
    for peer, why in r["unavailable"].items():
        text += f"   {peer}: {why}"
    return text


def process_line(r: Result) -> str:
    text = f"{r['model']:14s} {r['contestant']:12s}"
    if "error" in r:
        return f"{text} {r['error']}"
    cold, warm = r["cold"], r["warm"]
    return (
        f"{text} first result {cold['first_result_seconds']:6.2f} s, "
        f"again {warm['first_result_seconds']:6.2f} s, peak {cold['peak_bytes'] >> 20} MiB"
        + (f", error {r['accuracy']['rms']:.0e}" if "accuracy" in r else "")
    )


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


if __name__ == "__main__":
    main()
