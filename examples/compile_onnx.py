"""Compile an ONNX file, call it in all three ways, save the program and load it again.

python examples/compile_onnx.py [model.onnx]        without a file: SqueezeNet
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import tilewright as tw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import models


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else models.path("squeezenet")
    exe = tw.compile(path)
    assert isinstance(exe, tw.Executable), "this model leaves shapes open: give shapes={...}"
    print(exe)

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s.shape).astype(s.dtype) for s in exe.inputs]
    by_position = exe(*arrays)
    feeds = {s.name: a for s, a in zip(exe.inputs, arrays, strict=True)}
    by_name = exe.run(feeds)
    first = by_name[exe.outputs[0].name]
    assert np.array_equal(by_position[0] if isinstance(by_position, tuple) else by_position, first)

    best = np.argsort(first.reshape(-1))[::-1][:5]
    print("largest:", ", ".join(f"[{k}] {first.reshape(-1)[k]:.4f}" for k in best))

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "program.tw"
        exe.save(file)
        loaded = tw.load(file)
        same = np.array_equal(loaded.run(feeds)[exe.outputs[0].name], first)
        print(f"saved {file.stat().st_size / 1e6:.1f} MB, loaded, "
              f"{'the same bits' if same else 'DIFFERENT RESULTS'}")  # fmt: skip
        assert same


if __name__ == "__main__":
    main()
