"""The page of results, and that the one in docs/ is what the committed results say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from .scripts import script

report = script("report")

ABOUT = {"machine": "M", "system": "S", "python": "3", "date": "2026-01-01", "commit": "abc",
         "seconds": 1.0, "foreign_processors": 0.25}  # fmt: skip


def run(model: str, ours: float, peers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A result in which a peer is (seconds, speedup), and perhaps its median difference."""
    found = {
        p: {"median_seconds": x[0], "speedup": x[1], "typical": x[2] if len(x) > 2 else 0.0,
            "version": "9"}
        for p, x in peers.items()
    }  # fmt: skip
    return {"model": model, "batch": 1, "threads": 2, "about": ABOUT, "peers": found,
            "latency": {"median_seconds": ours, "spread": 0.01}, "unavailable": {},
            **more}  # fmt: skip


def page(*runs: dict[str, Any]) -> str:
    text: str = report.page({"latency": list(runs), "processes": []}, {})
    return text


def row(text: str, name: str) -> list[str]:
    """The cells of the last table row that begins so."""
    lines = [x for x in text.splitlines() if x.startswith(f"| {name} |")]
    return [c.strip() for c in lines[-1].strip("|").split("|")]


def test_the_page_is_what_the_script_makes_of_the_committed_results() -> None:
    assert report.PAGE.read_text(encoding="utf-8") == report.page(*report.read(report.DEFAULT)), (
        "docs/performance.md is stale: run benchmarks/report.py"
    )


def test_the_best_peer_is_the_one_with_the_smallest_ratio() -> None:
    text = page(run("a", 2e-3, {"onnxruntime": (3e-3, 1.5), "openvino": (2.4e-3, 1.2)}))
    assert row(text, "a") == ["a", "2.00 ±1%", "3.00 (1.50x)", "2.40 (1.20x)", "**1.20x**"]


def test_runs_against_other_peers_join_one_row() -> None:
    first = run("a", 2e-3, {"onnxruntime": (3e-3, 1.5), "openvino": (4e-3, 2.0)})
    second = run("a", 9e-3, {"torch": (9.9e-3, 1.1)})
    assert row(page(first, second), "a")[1:] == [
        "2.00 ±1%", "3.00 (1.50x)", "4.00 (2.00x)", "9.90 (1.10x)", "**1.10x**",
    ]  # fmt: skip


def test_means_are_geometric_and_held_out_models_are_marked() -> None:
    text = page(run("a", 1e-3, {"openvino": (1e-3, 1.0)}),
                run("b", 1e-3, {"openvino": (4e-3, 4.0)}),
                run("segnet", 1e-3, {"openvino": (1e-3, 0.5)}))  # fmt: skip
    assert row(text, "*mean*")[-1] == "**2.00x**"
    assert row(text, "*mean, held out*")[-1] == "**0.50x**"
    assert row(text, "*mean of all*")[-1] == f"**{(1 * 4 * 0.5) ** (1 / 3):.2f}x**"
    assert row(text, r"segnet\*")[-1] == "**0.50x**"
    # batch, threads, models, of which faster than all peers, mean
    assert row(text, "1")[:5] == ["1", "2", "3", "2", "1.26x"]


def test_a_peer_that_computes_something_else_is_no_peer() -> None:
    text = page(run("a", 2e-3, {"onnxruntime": (1e-3, 0.5, 1e-3), "openvino": (4e-3, 2.0)}))
    assert row(text, "a")[2:] == ["-", "4.00 (2.00x)", "**2.00x**"]
    assert "* a, onnxruntime: computes something else: half of the outputs differ by" in text


def test_what_could_not_be_measured_says_why() -> None:
    text = page(
        run("a", 2e-3, {}, unavailable={"ncnn": "no | <layer>"}),
        {"model": "b", "batch": 1, "threads": 2, "about": ABOUT, "error": "broke", "peers": {},
         "unavailable": {}},
    )  # fmt: skip
    assert "* a, ncnn: no  layer" in text and "* b: broke" in text
    assert row(text, "a")[-1] == "**-**"


def test_seconds_and_memory_of_processes() -> None:
    cost = {"first_result_seconds": 1.5, "peak_bytes": 3 << 20}
    found = {"model": "a", "batch": 1, "threads": 2, "contestant": "tilewright", "about": ABOUT,
             "cold": cost, "warm": cost | {"first_result_seconds": 0.25}}  # fmt: skip
    lost = found | {"contestant": "ncnn", "error": "x"}
    del lost["cold"]
    text = report.page({"latency": [run("a", 1e-3, {})], "processes": [found, lost]}, {})
    assert row(text, "a") == ["a", "1.50, 0.25; 3", "-"]


def contestant(name: str, **errors: float) -> dict[str, Any]:
    """What a process of its own tells of accuracy."""
    facts = {"max": 2e-6, "rms": 1e-7, "typical": 1e-8, "off": 0.0} | errors
    cost = {"first_result_seconds": 1.5, "peak_bytes": 3 << 20}
    return {"model": "a", "batch": 1, "threads": 2, "contestant": name, "about": ABOUT,
            "cold": cost, "warm": cost, "accuracy": facts}  # fmt: skip


def test_errors_against_float64() -> None:
    found = [contestant("tilewright", off=0.02), contestant("onnxruntime"),
             contestant("openvino", typical=1e-3)]  # fmt: skip
    text = report.page({"latency": [run("a", 1e-3, {})], "processes": found}, {})
    table = text[text.index("## Accuracy") : text.index("## A process")]
    assert row(table, "a")[1:] == [
        "1.0e-07; 2e-06; 2.0%", "1.0e-07; 2e-06", "1.0e-07; 2e-06, computes something else",
    ]  # fmt: skip


def test_kernels_by_model_and_by_template() -> None:
    common = {"launches": 1, "level": "L2"}
    kernels = [
        {"template": "conv", "seconds": 3e-3, "of_peak": 0.8, "as_direct": 1.6, "of_memory": 0.1,
         "of_limit": 0.8, "bound": "arithmetic"} | common,
        {"template": "conv", "seconds": 1e-3, "of_peak": 1.0, "as_direct": 1.0, "of_memory": 0.1,
         "of_limit": 1.0, "bound": "arithmetic"} | common,
        {"template": "nest", "seconds": 1e-3, "of_peak": 0.1, "as_direct": 0.1, "of_memory": 0.5,
         "of_limit": 0.5, "bound": "memory"} | common,
    ]  # fmt: skip
    rates = {"multiply": 2.0, "add": 2.0, "any": 4.0, "shuffle": 2.0, "divide": 0.5, "sqrt": 0.25,
             "load": 2.0, "broadcast": 4.0, "store": 1.0}  # fmt: skip
    limits = {"threads": 1, "flops": 9e9, "levels": [{"name": "L1", "read": 5e9}], "rates": rates}
    found = [{"name": "segnet", "seconds": 5e-3, "median_seconds": 5.1e-3, "about": ABOUT,
              "limits": limits, "kernels": kernels}]  # fmt: skip
    text = report.page({"latency": [], "processes": []}, {"kernels": found})
    assert row(text, r"segnet\*")[1:] == [
        "5.00", "80%", "85%", "85%", "145%", "20%", "50%", "**78%**",
    ]  # fmt: skip
    assert row(text, "conv, arithmetic")[1:] == ["2", "80%", "85%", "85%", "100%", "25%"]
    assert row(text, "nest, memory")[1:] == ["1", "20%", "10%", "50%", "50%", "0%"]
    assert "1 additions, 2 of all together" in text and "0.5 stores" in text
    assert "9 GFLOP/s" in text and "L1 5" in text and "M, 2026-01-01, abc" in text
    assert "medians are 2.0% longer" in text


def test_calls_and_compiling() -> None:
    calls = [{"name": "numpy", "median_us": 1.5, "least_us": 1.25, "about": ABOUT}]
    seconds = {"ready": {"wall": 2.5}, "read": {"wall": 0.25}, "kernels": {"distinct": 7.0}}
    compiled = [
        {"name": "b", "error": "broke"},
        {"name": "a", "about": ABOUT, "cold": seconds,
         "warm": seconds | {"ready": {"wall": 0.5}}, "load": seconds | {"ready": {"wall": 0.125}}},
    ]  # fmt: skip
    text = report.page({"latency": [], "processes": []},
                       {"overhead": calls, "compile_time": compiled})  # fmt: skip
    assert row(text, "numpy")[1:] == ["1.50", "1.25"]
    assert row(text, "a")[1:] == ["7", "2.50", "0.500", "0.250", "0.125", "0.250"]
    assert row(text, "b")[1] == "failed"


def test_memory() -> None:
    def planned(size: int) -> dict[str, Any]:
        return {"bytes": size << 20, "seconds": 1e-3}

    cost = {"peak_bytes": 200 << 20, "import_bytes": 50 << 20}
    found = [
        {"name": "segnet", "about": ABOUT | {"threads": 1}, "steps": 3, "blocks": 5,
         "bound_bytes": 4 << 20, "unshared_bytes": 40 << 20, "plan_seconds": 0.0125,
         "planners": {"unshared": planned(40), "ours": planned(4)},
         "levers": {"sharing": 36 << 20, "in place": 0, "views": -(1 << 19)},
         "processes": {"tilewright": cost, "onnxruntime": {"error": "broke"}}},
    ]  # fmt: skip
    text = report.page({"latency": [], "processes": []}, {"memory": found})
    text = text[text.index("## Memory") :]
    rows = [line for line in text.splitlines() if line.startswith(r"| segnet\* |")]
    assert rows == [
        r"| segnet\* | 5 | 4.00 | 10.000; 1.00 | 1.000; 1.00 | 12.5 |",
        r"| segnet\* | 40.0 | 4.00 | 36.0 | - | -0.50 |",
        r"| segnet\* | 200 (50.0) | - |",
    ]
    assert row(text, "*mean*")[3:5] == ["10.000", "1.000"]
    assert "on 1 thread;" in text and "M, 2026-01-01, abc" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1234567, "123"), (0.01234, "12.3"), (0.001, "1.00"), (1e-5, "0.010")]
)
def test_three_digits(seconds: float, text: str) -> None:
    assert report.ms(seconds) == text


def test_no_ratio() -> None:
    assert report.ratio(math.nan) == "-"
    assert math.isnan(report.mean([]))


@pytest.mark.parametrize("key", ["cached", "read"])
def test_reading_counts_from_the_page_cache_where_that_was_measured(key: str) -> None:
    def spent(seconds: float) -> dict[str, Any]:
        return {"wall": seconds, "cpu": seconds}

    times = {"ready": spent(0.25), "read": spent(0.75), "kernels": {"distinct": 3}}
    if key == "cached":
        times["cached"] = spent(0.125)
    found = {"name": "a", "about": ABOUT, **dict.fromkeys(("cold", "warm", "load"), times)}
    text = report.compile_section([found, {"name": "b", "about": ABOUT, "error": "broke"}])
    shown = {"cached": "0.125", "read": "0.750"}[key]
    assert row(text, "a") == ["a", "3", "0.25", "0.250", shown, "0.250", shown]
    assert ("when it is in the page cache" in text) is (key == "cached")
