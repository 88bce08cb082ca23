"""The architectures that ship with the onnx package, with calibrated random weights, compiled and
compared with a float64 execution of the same graph (and with onnxruntime where it is installed)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.frontends import onnx as frontend
from tilewright.compiler.graph.evaluate import evaluate

QUICK = ("squeezenet", "shufflenet")
SLOW = ("alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "vgg19", "zfnet512")

# float32 sums of up to 4,608 products per layer, tens of layers deep, and a softmax that magnifies
# what arrives at it. The deepest networks are the worst, in any runtime: random weights and inputs
# were seen to put onnxruntime up to 7e-5 from float64 on ResNet-50, 2e-5 on Inception v2.
# Winograd's F(4x4), which "standard" may use, errs up to 6 times as much as direct sums: 1.1e-4
# were seen on Inception v2, 1.5e-5 under "reproducible".
TOLERANCE = {"resnet50": 2e-4, "inception_v2": 2e-4}


def models() -> ModuleType:
    """benchmarks/models.py, which is no part of the package."""
    path = Path(__file__).parents[2] / "benchmarks" / "models.py"
    spec = importlib.util.spec_from_file_location("tilewright_models", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_architecture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    path = models().path(name)
    exe = tw.compile(path)
    spec = exe.inputs[0]
    x = np.random.default_rng(11).standard_normal(spec.shape).astype(np.float32)
    y = exe(x)
    truth = evaluate(frontend.read(path), {spec.name: x})[exe.outputs[0].name]
    error = np.abs(y - truth).max() / np.abs(truth).max()
    assert error < TOLERANCE.get(name, 1e-5)
    exe.plan.check()
    assert exe.plan.arena_bytes < exe.plan.unshared_bytes
    if name == "resnet50":
        assert len(exe.kernels) <= 70


@pytest.mark.parametrize("name", ["squeezenet", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_code_for_a_gpu(name: str) -> None:
    """PTX for all kernels; convolutions run in tiles, and nothing lies in local memory."""
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    exe = tw.compile(models().path(name), target="cuda:sm_90")
    exe.plan.check()
    text = exe.ir("ptx")
    phases = [p for k in exe.kernels for p in k.phases]
    assert all(f".entry {p.name}(" in text for p in phases)
    assert ".local" not in text, "all is in registers"
    tiles = [k for k in exe.kernels if k.template == "gpu_tiles"]
    assert len(tiles) >= 26 and all(p.blocks > 1 for k in tiles for p in k.phases)
    assert {k.template for k in exe.kernels} == {"gpu_tiles", "gpu_nest"}
    assert not any("general nest" in note for k in exe.kernels for note in k.notes)
