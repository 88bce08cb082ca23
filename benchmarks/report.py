"""Makes docs/performance.md of the results of benchmarks/inference.py. Nobody types figures.

python benchmarks/report.py                     from benchmarks/results/inference.json
python benchmarks/report.py other.json --print
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
DEFAULT: Final = HERE / "results" / "inference.json"
PAGE: Final = HERE.parent / "docs" / "performance.md"

PEERS: Final = ("onnxruntime", "openvino", "torch", "ncnn")
TITLES: Final = {"tilewright": "Tilewright", "onnxruntime": "onnxruntime", "openvino": "OpenVINO",
                 "torch": "torch.compile", "ncnn": "ncnn"}  # fmt: skip
HELD_OUT: Final = ("densenet121", "inception_v2", "shufflenet", "transformer", "segnet",
                   "mobilenet")  # fmt: skip
"""Models to see whether what is fast on the others is fast in general."""

WRONG: Final = 0.25
"""A peer whose outputs differ in more than that part of their elements computes something else.
SegNet needs the room: where two values in a window of its deepest pooling are equal but for
rounding, one index in 10^5 or so comes out otherwise, and each such place shows in 2 % of the
image. Other models differ in none."""

INTRODUCTION: Final = """\
# Performance

How long an inference takes, in float32, beside other runtimes on the same machine. This page is
made by `benchmarks/report.py` of `benchmarks/results/{file}`; edit neither by hand.

```
python benchmarks/inference.py                      # Tilewright, onnxruntime, OpenVINO
python benchmarks/inference.py --peers torch,ncnn   # adds the others to the same results
python benchmarks/report.py                         # makes this page
```

Contestants take turns in one process, with the same number of threads, in changing order: a rest of
60 ms, in which the spinning threads of the one before come to rest, 20 ms of calls that do not
count, then timed calls. A time is the median over the turns. A ratio is the median, over the turns,
of a peer's time divided by Tilewright's in the same turn: above 1, Tilewright is faster. `best` is
the ratio to whichever peer is fastest on that model. Means are geometric. The outputs of all
contestants were compared. Models marked \\* are those that the project's targets hold out.

onnxruntime runs with all its optimisations, OpenVINO with the latency hint, one stream and float32
(its default is bfloat16 where the CPU has it), torch compiled by inductor with frozen weights, ncnn
in float32 and, as it has no batch, sample by sample. `tilewright bench model.onnx --peers openvino`
does the same with one model.
"""

Result = dict[str, Any]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("results", nargs="?", type=Path, default=DEFAULT)
    p.add_argument("--print", action="store_true", help="to the terminal, not to the page")
    args = p.parse_args()
    text = page(json.loads(args.results.read_text(encoding="utf-8")), args.results.name)
    if args.print:
        print(text, end="")
    else:
        PAGE.write_text(text, encoding="utf-8")
        print(f"written to {PAGE}")


def page(data: dict[str, Any], file: str) -> str:
    """The whole document."""
    found = data["latency"]
    parts = [INTRODUCTION.format(file=file), conditions(data)]
    combinations = sorted({(r["batch"], r["threads"]) for r in found})
    parts.append(summary(found, combinations))
    for batch, threads in combinations:
        some = [r for r in found if (r["batch"], r["threads"]) == (batch, threads)]
        parts.append(latency_table(some, batch, threads))
    if data.get("processes"):
        parts.append(process_table(data["processes"]))
    return "\n".join(parts)


# --------------------------------------------------------------------------- latency


class Model:
    """All results of one model at one batch and number of threads: a run per set of peers."""

    def __init__(self, name: str, runs: Sequence[Result]) -> None:
        self.name = name
        good = [r for r in runs if "latency" in r]
        self.error = "" if good else runs[-1].get("error", "")
        # The run that has most peers tells Tilewright's own time.
        main = max(good, key=lambda r: len(r["peers"]), default=None)
        self.seconds = main["latency"]["median_seconds"] if main else math.nan
        self.spread = main["latency"]["spread"] if main else 0.0
        self.peers: dict[str, Result] = {}
        self.lacking: dict[str, str] = {}
        for r in runs:
            self.lacking |= r.get("unavailable", {})
            for peer, x in r.get("peers", {}).items():
                if x.get("differing", 0.0) > WRONG:
                    self.lacking[peer] = (f"computes something else: {x['differing']:.0%} of the "
                                          "outputs differ")  # fmt: skip
                else:
                    self.peers[peer] = x

    @property
    def best(self) -> float:
        """The ratio to the fastest peer; NaN where there is none."""
        return min((x["speedup"] for x in self.peers.values()), default=math.nan)


def by_model(found: Iterable[Result]) -> list[Model]:
    """In alphabetical order, held-out models last."""
    runs: dict[str, list[Result]] = {}
    for r in found:
        runs.setdefault(r["model"], []).append(r)
    names = sorted(runs, key=lambda n: (n in HELD_OUT, n))
    return [Model(n, runs[n]) for n in names]


def summary(found: Sequence[Result], combinations: Sequence[tuple[int, int]]) -> str:
    rows = []
    for batch, threads in combinations:
        models = by_model(r for r in found if (r["batch"], r["threads"]) == (batch, threads))
        best = [m.best for m in models if not math.isnan(m.best)]
        cells = [str(batch), str(threads), str(len(best)), str(sum(b >= 1 for b in best)),
                 ratio(mean(best))]  # fmt: skip
        for peer in peers_of(found):
            theirs = [m.peers[peer]["speedup"] for m in models if peer in m.peers]
            cells.append(ratio(mean(theirs)))
        rows.append(cells)
    header = ["batch", "threads", "models", "faster than all peers", "mean to the best",
              *(f"to {TITLES[p]}" for p in peers_of(found))]  # fmt: skip
    return "## Summary\n\n" + markdown(header, rows)


def latency_table(found: Sequence[Result], batch: int, threads: int) -> str:
    models, peers = by_model(found), peers_of(found)
    rows = []
    for m in models:
        name = m.name + (r"\*" if m.name in HELD_OUT else "")
        cells = [name, f"{ms(m.seconds)} ±{m.spread:.0%}" if m.peers or not m.error else "failed"]
        for peer in peers:
            x = m.peers.get(peer)
            cells.append(f"{ms(x['median_seconds'])} ({ratio(x['speedup'])})" if x else "-")
        rows.append([*cells, f"**{ratio(m.best)}**"])
    for title, some in (
        ("mean", [m for m in models if m.name not in HELD_OUT]),
        ("mean, held out", [m for m in models if m.name in HELD_OUT]),
        ("mean of all", models),
    ):
        cells = [f"*{title}*", ""]
        for peer in peers:
            theirs = [m.peers[peer]["speedup"] for m in some if peer in m.peers]
            cells.append(ratio(mean(theirs)))
        rows.append([*cells, f"**{ratio(mean([m.best for m in some]))}**"])
    header = ["model", "Tilewright, ms", *(f"{TITLES[p]}, ms" for p in peers), "best"]
    plural = "s" if threads > 1 else ""
    text = f"## Batch {batch}, {threads} thread{plural}\n\n{markdown(header, rows)}"
    notes = [f"* {m.name}: {m.error}" for m in models if m.error]
    notes += [f"* {m.name}, {TITLES.get(p, p)}: {plain(why)}" for m in models
              for p, why in m.lacking.items()]  # fmt: skip
    return text + ("\nNot measured:\n\n" + "\n".join(notes) + "\n" if notes else "")


# --------------------------------------------------------------------------- processes


def process_table(found: Sequence[Result]) -> str:
    contestants = ["tilewright", *(p for p in PEERS if any(r["contestant"] == p for r in found))]
    cells = {(r["model"], r["contestant"]): r for r in found if "cold" in r}
    names = sorted({r["model"] for r in found}, key=lambda n: (n in HELD_OUT, n))
    rows = []
    for n in names:
        row = [n + (r"\*" if n in HELD_OUT else "")]
        for c in contestants:
            r = cells.get((n, c))
            row.append("-" if r is None else (
                f"{r['cold']['first_result_seconds']:.2f}, {r['warm']['first_result_seconds']:.2f}"
                f"; {r['warm']['peak_bytes'] / 2**20:.0f}"
            ))  # fmt: skip
        rows.append(row)
    batch, threads = found[0]["batch"], found[0]["threads"]
    return (
        f"## A process of its own\n\nSeconds from the model's file to the first result, imports "
        f"not counted: the first time, and in a second process that finds what the first one "
        f"stored; then the peak of resident memory of the second, in MiB. Batch {batch}, {threads} "
        f"threads.\n\n{markdown(['model', *(TITLES[c] for c in contestants)], rows)}"
    )


# --------------------------------------------------------------------------- parts


def conditions(data: dict[str, Any]) -> str:
    """Machine, dates, commits, versions, and how quiet it was."""
    runs = [r for r in (*data["latency"], *data["processes"]) if "about" in r]
    versions = {p: x["version"] for r in data["latency"] for p, x in r.get("peers", {}).items()}
    foreign = [r["about"]["foreign_processors"] for r in data["latency"] if "about" in r]
    rows = [
        ["machine", "; ".join(distinct(r["about"]["machine"] for r in runs))],
        ["system", "; ".join(distinct(r["about"]["system"] for r in runs))],
        ["Python", "; ".join(distinct(r["about"]["python"] for r in runs))],
        ["date", "; ".join(distinct(r["about"]["date"] for r in runs))],
        ["commit", "; ".join(distinct(r["about"]["commit"] for r in runs))],
        ["peers", ", ".join(f"{p} {versions[p]}" for p in PEERS if p in versions)],
        ["measuring", "; ".join(distinct(f"{r['about']['seconds']:g} s" for r in data["latency"]))
         + " per combination"],
        ["other processes", f"{mean_of(foreign):.2f} processors on average, "
         f"{max(foreign, default=0.0):.2f} at most"],
    ]  # fmt: skip
    return markdown(["", ""], rows)


def peers_of(found: Iterable[Result]) -> list[str]:
    named = {p for r in found for f in ("peers", "unavailable") for p in r.get(f, ())}
    return [p for p in PEERS if p in named]


def distinct(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def mean_of(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def mean(ratios: Iterable[float]) -> float:
    """The geometric mean of those that are numbers; NaN of none."""
    logs = [math.log(r) for r in ratios if r > 0]
    return math.exp(mean_of(logs)) if logs else math.nan


def ratio(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.2f}x"


def ms(seconds: float) -> str:
    """Milliseconds, three digits."""
    x = seconds * 1e3
    return (
        f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}" if x >= 1 else f"{x:.3f}"
    )


def plain(text: str) -> str:
    """Words of other programs, without what Markdown reads as more than words."""
    return "".join(c for c in text if c not in "|`*_<>[]\\").strip()


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|---" + "|--:" * (len(header) - 1) + "|")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
