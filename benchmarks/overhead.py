"""What a call costs besides the work: x + 1 on 10 floats, numpy in and out.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --rounds 50 --output other.json

Contestants take turns, a batch of calls each; a batch gives the mean time of its calls. Reported
are the least and the median over the batches, in microseconds. All run on one thread. numpy's own
x + 1 has no overhead but its own. The numbers go to a JSON file, with the machine, the versions and
the commit; benchmarks/report.py makes a section of docs/performance.md of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import about
from sheet import RESULTS, Sheet

import tilewright as tw

DEFAULT = RESULTS / "overhead.json"
SIZE = 10


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--rounds", type=int, default=30, help="batches per contestant")
    p.add_argument("--calls", type=int, default=5000, help="calls per batch")
    p.add_argument("--output", type=Path, default=DEFAULT, help=f"JSON file (default: {DEFAULT})")
    args = p.parse_args()
    x = np.arange(SIZE, dtype=np.float32)
    calls = contestants(x)
    for name, call in calls.items():
        np.testing.assert_array_equal(np.asarray(call()), x + 1, err_msg=name)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.rounds):
        for name, call in calls.items():
            seconds[name].append(batch(call, args.calls))
    results = {
        name: {"least_us": min(s) * 1e6, "median_us": statistics.median(s) * 1e6}
        for name, s in seconds.items()
    }
    sheet = Sheet(args.output)
    facts = about(rounds=args.rounds, calls=args.calls)
    for name, r in results.items():
        sheet.put(name, {"about": facts, **r})
        print(f"{name:24s} {r['least_us']:7.2f} us  median {r['median_us']:7.2f} us")
    print(f"written to {sheet.file}")


def batch(call: Callable[[], Any], count: int) -> float:
    """Mean seconds of a call, the loop around it included."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def contestants(x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """x + 1 as each of the installed libraries is called by its users."""
    g = tw.Graph("plus_one")
    g.output(g.add(g.input("x", (SIZE,)), g.constant(np.float32(1))), name="y")
    exe = tw.compile(g)
    y = np.empty_like(x)
    found: dict[str, Callable[[], Any]] = {
        "numpy": lambda: x + np.float32(1),
        "tilewright": lambda: exe(x),
        "tilewright, by names": lambda: exe.run({"x": x})["y"],
        "tilewright, into an array": lambda: exe(x, out=y),
    }
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        session = onnxruntime_session()
        found["onnxruntime"] = lambda: session.run(None, {"x": x})[0]
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        one = torch.from_numpy(x)
        found["torch eager, tensors"] = lambda: one + 1
        found["torch eager, arrays"] = lambda: (torch.from_numpy(x) + 1).numpy()
    return found


def onnxruntime_session() -> Any:
    import onnx
    import onnxruntime

    def value(name: str) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [SIZE])

    one = onnx.numpy_helper.from_array(np.array(1, np.float32), "one")
    node = onnx.helper.make_node("Add", ["x", "one"], ["y"])
    graph = onnx.helper.make_graph([node], "plus_one", [value("x")], [value("y")], [one])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


if __name__ == "__main__":
    main()
