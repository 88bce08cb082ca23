"""Makes docs/performance.md of the results of the other scripts here. Nobody types figures.

python benchmarks/report.py                     from benchmarks/results
python benchmarks/report.py folder --print

Of the files in the folder, inference.json is needed; kernels.json, memory.json, overhead.json,
compile_time.json and autotune.json each make a section.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from figures import distinct, fine, markdown, mean, mean_of, mib, ms, percent, plain, ratio

HERE: Final = Path(__file__).parent
DEFAULT: Final = HERE / "results"
PAGE: Final = HERE.parent / "docs" / "performance.md"

PEERS: Final = ("onnxruntime", "openvino", "torch", "ncnn")
TITLES: Final = {"tilewright": "Tilewright", "onnxruntime": "onnxruntime", "openvino": "OpenVINO",
                 "torch": "torch.compile", "ncnn": "ncnn"}  # fmt: skip
HELD_OUT: Final = ("densenet121", "inception_v2", "shufflenet", "transformer", "segnet",
                   "mobilenet")  # fmt: skip
"""Models to see whether what is fast on the others is fast in general."""

NEAR: Final = 0.9
"""Share of a limit that kernels are counted near from."""

WRONG: Final = 1e-4
"""A contestant whose median error is more than that part of the largest output computes something
else, or not in float32: roundings add up to some 10^-6, bfloat16 is off by 10^-3. The median, as
the largest error says nothing of a network that chooses between almost equal values."""

INTRODUCTION: Final = """\
# Performance

How long an inference takes, in float32, beside other runtimes on the same machine. This page is
made by `benchmarks/report.py` of the files in `benchmarks/results`; edit neither by hand.

```
make bench-all                                      # measures everything on this page, makes it
python benchmarks/inference.py --peers torch,ncnn   # adds other runtimes to the same results
python benchmarks/report.py                         # makes this page of the results
```

Contestants take turns in one process, with the same number of threads, in changing order: a rest of
60 ms, in which the spinning threads of the one before come to rest, 20 ms of calls that do not
count, then timed calls. A time is the median over the turns. A ratio is the median, over the turns,
of a peer's time divided by Tilewright's in the same turn: above 1, Tilewright is faster. `best` is
the ratio to whichever peer is fastest on that model. Means are geometric. The outputs of all
contestants were compared: with each other's, and with float64. Models marked \\* are those that the
project's targets hold out.

onnxruntime runs with all its optimisations, OpenVINO with the latency hint, one stream and float32
(its default is bfloat16 where the CPU has it), torch compiled by inductor with frozen weights, ncnn
in float32 and, as it has no batch, sample by sample. `tilewright bench model.onnx --peers openvino`
does the same with one model.
"""

Result = dict[str, Any]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("results", nargs="?", type=Path, default=DEFAULT, help="folder")
    p.add_argument("--print", action="store_true", help="to the terminal, not to the page")
    args = p.parse_args()
    text = page(*read(args.results))
    if args.print:
        print(text, end="")
    else:
        PAGE.write_text(text, encoding="utf-8")
        print(f"written to {PAGE}")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Sequence[Result]]]:
    """The results of inference.py, and those of the other scripts by name."""
    files = {s: folder / f"{s}.json" for s in SECTIONS if (folder / f"{s}.json").exists()}
    data = json.loads((folder / "inference.json").read_text(encoding="utf-8"))
    return data, {s: json.loads(f.read_text(encoding="utf-8")) for s, f in files.items()}


def page(data: dict[str, Any], more: dict[str, Sequence[Result]]) -> str:
    """The whole document."""
    found = data["latency"]
    parts = [INTRODUCTION, conditions(data)]
    combinations = sorted({(r["batch"], r["threads"]) for r in found})
    parts.append(summary(found, combinations))
    for batch, threads in combinations:
        some = [r for r in found if (r["batch"], r["threads"]) == (batch, threads)]
        parts.append(latency_table(some, batch, threads))
    if data.get("processes"):
        parts.append(accuracy_table(data["processes"]))
        parts.append(process_table(data["processes"]))
    parts += [make(more[name]) for name, make in SECTIONS.items() if more.get(name)]
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
                if x.get("typical", 0.0) > WRONG:
                    self.lacking[peer] = (f"computes something else: half of the outputs differ by "
                                          f"more than {x['typical']:.0e}")  # fmt: skip
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


ACCURACY: Final = """\
## Accuracy

Errors of float32 against the same model in float64, relative to the largest output: root mean
square; largest; and, where there are any, the part of the outputs that is off by more than a
thousandth. Batch 1, default numerics.
"""
CHOOSING: Final = """
Where a part of SegNet's outputs is off, a pooling took the other one of two inputs that differ by
less than their rounding errors, and the decoder puts the value elsewhere, which shows in a part of
the image. It happens to every contestant; on which images, is chance
([architecture.md](architecture.md#numerics)).
"""


def accuracy_table(found: Sequence[Result]) -> str:
    """Nothing where no contestant was compared."""
    contestants = contestants_of(found)
    cells = {(r["model"], r["contestant"]): r["accuracy"] for r in found if "accuracy" in r}
    rows = []
    for n in names_of(found):
        row = [n + (r"\*" if n in HELD_OUT else "")]
        for c in contestants:
            e = cells.get((n, c))
            if e is None:
                row.append("-")
                continue
            text = f"{e['rms']:.1e}; {e['max']:.0e}" + (f"; {e['off']:.1%}" if e["off"] else "")
            row.append(f"{text}, computes something else" if e["typical"] > WRONG else text)
        rows.append(row)
    table = markdown(["model", *(TITLES[c] for c in contestants)], rows)
    chooses = any(e["off"] for e in cells.values())
    return f"{ACCURACY}\n{table}{CHOOSING if chooses else ''}" if cells else ""


def process_table(found: Sequence[Result]) -> str:
    contestants = contestants_of(found)
    cells = {(r["model"], r["contestant"]): r for r in found if "cold" in r}
    rows = []
    for n in names_of(found):
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


def contestants_of(found: Sequence[Result]) -> list[str]:
    return ["tilewright", *(p for p in PEERS if any(r["contestant"] == p for r in found))]


def names_of(found: Sequence[Result]) -> list[str]:
    """Models in the order of the tables."""
    return sorted({r["model"] for r in found}, key=lambda n: (n in HELD_OUT, n))


# --------------------------------------------------------------------------- other scripts


def kernel_section(found: Sequence[Result]) -> str:
    """Shares of the limits, weighted by time: per model, and per template over all models."""
    rows, every = [], []
    for r in sorted(found, key=lambda r: (r["name"] in HELD_OUT, r["name"])):
        cells = [r["name"] + (r"\*" if r["name"] in HELD_OUT else ""), ms(r["seconds"])]
        for memory, fields in (
            (False, ("of_limit", "of_peak", "as_direct")),
            (True, ("of_limit",)),
        ):
            some = [k for k in r["kernels"] if (k["bound"] == "memory") == memory]
            cells.append(percent(sum(k["seconds"] for k in some) / max(r["seconds"], 1e-12)))
            cells += [percent(weighted(some, f)) for f in fields]
        rows.append([*cells, f"**{percent(weighted(r['kernels'], 'of_limit'))}**"])
        every += r["kernels"]
    header = ["model", "ms", "bound by the core", "of its units", "of peak",
              "counted as direct sums", "bound by memory", "of bandwidth", "of limits"]  # fmt: skip
    whole = sum(k["seconds"] for k in every)
    kinds: dict[tuple[str, str], list[Result]] = {}
    for k in every:
        kinds.setdefault((k["template"], k["bound"]), []).append(k)
    templates = [
        [f"{template}, {bound}", str(len(some)),
         percent(sum(k["seconds"] for k in some) / max(whole, 1e-12)),
         percent(weighted(some, "of_peak")), percent(weighted(some, "of_limit")),
         percent(max(k["of_limit"] for k in some)),
         percent(sum(k["seconds"] for k in some if k["of_limit"] >= NEAR)
                 / max(sum(k["seconds"] for k in some), 1e-12))]
        for (template, bound), some in sorted(
            kinds.items(), key=lambda x: -sum(k["seconds"] for k in x[1]))
    ]  # fmt: skip
    disturbed = sum(r["median_seconds"] for r in found) / sum(r["seconds"] for r in found) - 1
    some = found[0]["limits"]
    levels = ", ".join(f"{x['name']} {x['read'] / 1e9:.0f}" for x in some["levels"])
    n = some["threads"]
    return (
        f"## Kernels near the machine's limits\n\nWhat `exe.profile()` says of every kernel, batch "
        f"1, {n} thread{'s' if n > 1 else ''} ({origin(found)}). Limits are measured: "
        f"{some['flops'] / 1e9:.0f} GFLOP/s of multiply-adds, reads in GB/s: {levels}, each the "
        "best that was seen. Times are lower quartiles, since what others on the machine do only "
        f"slows; medians are {disturbed:.1%} longer, all models together. Shares are weighted by "
        "time, none above 100 % (who gathers from a table reads only some of it). `of its units` "
        "is the share of the time that the instructions of a kernel keep the busiest unit of a "
        "core at work at least: arithmetic on vectors, loads, or stores, as counted in "
        "its Kernel IR, at rates that are measured as well"
        f"{rates(some.get('rates'))}. `of peak` counts the multiply-adds that problems need and "
        "nothing else, so that idle lanes count as lost; Winograd's convolutions replace most of "
        "theirs by additions, and would come to more than the peak if "
        f"`counted as direct sums`.\n\n{markdown(header, rows)}\n"
        "The same by kernel template and what binds it, over all models:\n\n"
        + markdown(["kernels", "distinct", "share of time", "of peak", "of limit", "best",
                    f"time at {NEAR:.0%} or more"], templates)
        + "\nUnits and bandwidths are ceilings of their own; what needs both in turn is below "
        "either: Winograd's transforms of few channels and pools, whose data come from beyond the "
        "second cache. A recurrent layer reads all its weights in every step, which no ceiling "
        "here counts: for gru_sent 150 times 122 KB from the second cache. Classifiers of a few MB "
        "are taken to be in the third, and are there if no other core fills it. Elsewhere "
        "`benchmarks/kernels.py --moved` shows that moving their bytes takes nearly as long.\n"
    )  # fmt: skip


def rates(some: dict[str, float] | None) -> str:
    """What a core issues, in vectors per multiply-add, for the middle of a sentence."""
    if some is None:
        return ""
    names = {"add": "additions", "any": "of all together", "shuffle": "shuffles",
             "divide": "divisions", "sqrt": "square roots", "load": "loads",
             "broadcast": "loads into all lanes", "store": "stores"}  # fmt: skip
    parts = (f"{some[k] / some['multiply']:.2g} {name}" for k, name in names.items())
    return f" (vectors in the time of one multiply-add: {', '.join(parts)})"


def overhead_section(found: Sequence[Result]) -> str:
    rows = [[r["name"], f"{r['median_us']:.2f}", f"{r['least_us']:.2f}"] for r in found]
    return (
        "## What a call costs\n\nMicroseconds for x + 1 on ten floats, numpy arrays in and out, "
        f"one thread ({origin(found)}).\n\n{markdown(['', 'median', 'least'], rows)}"
    )


def compile_section(found: Sequence[Result]) -> str:
    """Files that were read once only may have left the page cache, and their memory be new."""
    rows = []
    read = "cached" if all("cached" in r["warm"] for r in found if "error" not in r) else "read"
    how = (
        "takes alone when it is in the page cache"
        if read == "cached"
        else "took alone before, from a file that may have left the page cache, into memory that "
        "the machine may have had to fetch: it can be more than the whole of what came after"
    )
    for r in sorted(found, key=lambda r: (r["name"] in HELD_OUT, r["name"])):
        name = r["name"] + (r"\*" if r["name"] in HELD_OUT else "")
        if "error" in r:
            rows.append([name, "failed", "", "", "", "", ""])
            continue
        cold, warm, load = r["cold"], r["warm"], r["load"]
        rows.append([
            name, f"{cold['kernels']['distinct']:.0f}", f"{cold['ready']['wall']:.2f}",
            f"{warm['ready']['wall']:.3f}", f"{warm[read]['wall']:.3f}",
            f"{load['ready']['wall']:.3f}", f"{load[read]['wall']:.3f}",
        ])  # fmt: skip
    header = ["model", "distinct kernels", "cold, s", "warm, s", "its file, s", "load, s",
              "its file, s"]  # fmt: skip
    return (
        "## Compiling\n\nSeconds, each in a process of its own, imports left out: "
        "`tilewright.compile` with an empty store (cold), with what the first process stored "
        "(warm), and `tilewright.load` of the saved program; beside the latter two what reading "
        f"their file's bytes {how} ({origin(found)}).\n\n{markdown(header, rows)}"
    )


def memory_section(found: Sequence[Result]) -> str:
    """Planners beside the bound, what each decision saves, and resident memory of processes."""
    rows = sorted(found, key=lambda r: (r["name"] in HELD_OUT, r["name"]))
    titles = {r["name"]: r["name"] + (r"\*" if r["name"] in HELD_OUT else "") for r in rows}
    names = list(rows[0]["planners"])
    planners = []
    for r in rows:
        cells = [titles[r["name"]], str(r["blocks"]), mib(r["bound_bytes"])]
        for n in names:
            x = r["planners"][n]
            over = x["bytes"] / max(r["bound_bytes"], 1)
            cells.append(f"{over:.3f}; {ms(x['seconds'])}")
        planners.append([*cells, ms(r["plan_seconds"])])
    shares = [[x["planners"][n]["bytes"] / max(x["bound_bytes"], 1) for x in rows] for n in names]
    planners.append(["*mean*", "", "", *(f"{mean(s):.3f}" for s in shares), ""])
    levers = list(rows[0]["levers"])
    saved = [
        [titles[r["name"]], mib(r["unshared_bytes"]), mib(r["planners"]["ours"]["bytes"]),
         *(mib(r["levers"][n]) if r["levers"].get(n) else "-" for n in levers)]
        for r in rows
    ]  # fmt: skip
    resident = []
    for r in rows:
        cells = [titles[r["name"]]]
        for x in r.get("processes", {}).values():
            cells.append("-" if "error" in x else
                         f"{mib(x['peak_bytes'])} ({mib(x['import_bytes'])})")  # fmt: skip
        resident.append(cells)
    contestants = [TITLES[c] for c in rows[0].get("processes", {})]
    threads = rows[0]["about"]["threads"]
    return (
        f"## Memory\n\nThe memory of activations, batch 1 ({origin(found)}): planners on the same "
        "live ranges, those of our plan, with the order chosen and results in place of operands "
        "already. The bound, in MiB, is the largest sum of bytes alive in one step. For each "
        "planner: its arena as a multiple of the bound, and the milliseconds it takes; last what "
        "all of our planning takes, choosing and verifying included. `recycling` and `nearest "
        "size` are in the manner of Caffe2's memonger, `shared objects` and `offsets by size` are "
        "the greedy ones of Pisarchyk and Lee (2020), `best fit online` is an allocator at run "
        "time. The others run in Python, one thread all of them.\n\n"
        + markdown(["model", "blocks", "bound, MiB", *names, "our plan, ms"], planners)
        + "\nWhat the decisions save, in MiB, as `print(exe.plan)` says: the difference that it "
        "makes for the arena when nothing is shared, for the bound when one other decision alone "
        "is not taken.\n\n"
        + markdown(["model", "unshared", "arena", *levers], saved)
        + "\nThe peak of resident memory, in MiB, of a process that loads the model and runs it on "
        f"{threads} thread{'s' if threads > 1 else ''}; in brackets, what was resident after the "
        "imports.\n\n"
        + markdown(["model", *contestants], resident)
    )  # fmt: skip


def autotune_section(found: Sequence[Result]) -> str:
    """Searches on recorded spaces, how sure the choice is, and the defaults beside the best."""
    by_name = {r["name"]: r for r in found}
    parts = [f"## Autotuning\n\n`python benchmarks/autotune.py`, one thread ({origin(found)}).",
             "![curves](../benchmarks/results/autotune.svg)"]  # fmt: skip
    if "regret" in by_name:
        parts.append(_regret(by_name["regret"], by_name.get("transfer")))
    if "jitter" in by_name:
        parts.append(_jitter(by_name["jitter"]["rows"]))
    if by_name.get("retune", {}).get("rows"):
        rows, k = by_name["retune"]["rows"], by_name["retune"]["tunings"]
        far = max(r["apart"] for r in rows)
        parts.append(f"Measured anew, {k} tunings chose the same kernel for "
                     f"{sum(r['agree'] for r in rows)} of {len(rows)} problems; where they did "
                     f"not, the choices were {fine(far)} apart at most.")  # fmt: skip
    if by_name.get("defaults", {}).get("rows"):
        parts.append(_defaults(by_name["defaults"]))
    return "\n\n".join(p.rstrip("\n") for p in parts) + "\n"


def _regret(regret: Result, transfer: Result | None) -> str:
    """How good what searches find is, by part of the space and by number of candidates."""
    some = regret["strategies"] | ({} if transfer is None else transfer["strategies"])
    parts, counts = ("5%", "10%", "15%", "25%", "50%"), ("1", "3", "5", "8")
    rows = [
        [name, *(fine(x["share"][k]["median"]) for k in parts),
         *(f"{fine(x['count'][k]['median'])} ({fine(x['count'][k]['least'])})"
           for k in counts)]
        for name, x in some.items()
    ]  # fmt: skip
    header = ["", *(f"{k} of the space" for k in parts), "the default alone",
              *(f"{k} candidates" for k in counts[1:])]  # fmt: skip
    sizes = sorted(regret["sizes"])
    notes = ""
    if regret["large"]:
        found = {n: x["large"]["share"]["15%"] for n, x in some.items() if x["large"]}
        notes += (f"\nOf the {regret['large']} spaces of 20 candidates or more, 15 % find, in the "
                  "median and at least: "
                  + ", ".join(f"{n} {fine(x['median'])} and {fine(x['least'])}"
                              for n, x in found.items()) + ".\n")  # fmt: skip
    if transfer is not None:
        near = some["halving, held out"]["count"]["5"]["near"]
        notes += (f"\nFrom the winners of near problems, 5 candidates come to 95 % of the best for "
                  f"{near} of {transfer['problems']} held-out problems.\n")  # fmt: skip
    return (
        f"How good the best of what was run is, as a share of the best of the whole space: the "
        f"median over {regret['problems']} problems whose spaces of {sizes[0]} to {sizes[-1]} "
        f"candidates ({sizes[len(sizes) // 2]} in the median) were measured as a whole, in "
        "brackets the least. The default counts as one of the candidates, parts of a space are "
        "rounded up. `held out` starts from the winners of the nearest other problems.\n\n"
        + markdown(header, rows) + notes
    )  # fmt: skip


def _jitter(found: Sequence[Result]) -> str:
    """What becomes of the choice where times are noisy."""
    rows = [[fine(r[k]) for k in ("jitter", "wrong", "excess", "slower", "agree")] for r in found]
    header = ["samples are off by up to", "wrong winners", "slower than the fastest at most",
              "slower than the default", "all tunings agree"]  # fmt: skip
    return (
        f"Noise injected while replaying {found[0]['problems']} problems, {found[0]['tunings']} "
        "times each; wrong is a winner that is slower than the fastest candidate that ran by more "
        f"than the margin, within which ties go to the default.\n\n{markdown(header, rows)}"
    )


def _defaults(found: Result) -> str:
    """The default's time over the best, by template."""
    rows = []
    kinds = dict.fromkeys(r["template"] for r in found["rows"])
    for kind in (*sorted(kinds), "all"):
        ratios = sorted(r["ratio"] for r in found["rows"] if kind in ("all", r["template"]))
        n = len(ratios)
        rows.append([kind, str(n), f"{(ratios[(n - 1) // 2] + ratios[n // 2]) / 2:.3f}",
                     f"{ratios[math.ceil(0.9 * n) - 1]:.3f}", f"{ratios[-1]:.3f}",
                     fine(sum(r <= 1.03 for r in ratios) / n)])  # fmt: skip
    header = ["the default is of", "problems", "default / best", "nine in ten below", "worst",
              "within 3 %"]  # fmt: skip
    return (
        f"The time of the config that is used without tuning over that of the best that a search "
        f"finds, for {len(found['rows'])} of the {found['problems']} distinct convolutions and "
        f"matrix products of all models.\n\n{markdown(header, rows)}"
    )


SECTIONS: Final[dict[str, Callable[[Sequence[Result]], str]]] = {
    "kernels": kernel_section,
    "memory": memory_section,
    "overhead": overhead_section,
    "compile_time": compile_section,
    "autotune": autotune_section,
}


def origin(found: Sequence[Result]) -> str:
    """Where and when rows were measured, if that is not all one."""
    facts = [r["about"] for r in found if "about" in r]
    return "; ".join(distinct(f"{a['machine']}, {a['date']}, {a['commit']}" for a in facts))


def weighted(rows: Sequence[Result], field: str) -> float:
    """The mean of a field, weighted by time; NaN of none."""
    whole = sum(r["seconds"] for r in rows)
    return sum(r[field] * r["seconds"] for r in rows) / whole if whole else math.nan


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


if __name__ == "__main__":
    main()
