"""The benchmark models as peers read them that do not read ONNX, or not all of it.

    python benchmarks/forms.py torch squeezenet     prints where the file is

* torch: an exported program (.pt2). The networks written in PyTorch are exported as they are, those
  that come as ONNX by way of `torch_onnx.py`.
* ncnn: a .param file with its .bin, converted by pnnx, weights in float32, for one sample.
* openvino: ONNX without MaxUnpool, for which OpenVINO has no rule, where a model has that.

Files are kept beside the models.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import models
import onnx
from onnx import version_converter

OPSET: Final = 17


class NoForm(Exception):
    """A peer's form of a model cannot be made; says why."""


def form(peer: str, name: str, batch: int) -> Path | None:
    """The file that a peer reads instead of the ONNX model; None where it reads that. Raises NoForm
    or what the converters raise."""
    if peer == "torch":
        return _torch(name, batch)
    if peer == "ncnn":
        return _ncnn(name)
    if peer == "openvino" and _unpools(models.path(name)):
        file = models.path(name, batch)
        return models.variant(file, "scatter", models.without_unpool)
    return None


def _unpools(file: Path) -> bool:
    return any(n.op_type == "MaxUnpool" for n in onnx.load(file).graph.node)


def _torch(name: str, batch: int) -> Path:
    import torch
    import torch_models
    import torch_onnx

    source = models.path(name, batch)
    file = source.with_suffix(".pt2")
    if not file.exists():
        (x,) = models.sample(name, batch=batch).values()
        if name in models.TORCH_NAMES:
            net = torch_models.build(name)
        else:
            net = torch_onnx.module(onnx.load(source))
        with torch.no_grad():
            program = torch.export.export(net.eval(), (torch.from_numpy(x),))
        part = file.with_name(f"{os.getpid()}.{file.name}")
        torch.export.save(program, part)
        os.replace(part, file)
    return file


def _ncnn(name: str) -> Path:
    source = models.path(name)
    file = source.with_suffix(".param")
    if not file.exists():
        converter = _pnnx()
        with tempfile.TemporaryDirectory(dir=source.parent) as folder:
            copy = Path(folder) / "net.onnx"
            # pnnx reads axes as newer opsets mean them.
            onnx.save(version_converter.convert_version(onnx.load(source), OPSET), copy)
            done = subprocess.run(
                [converter, copy.name, "fp16=0"], cwd=folder, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            made = copy.with_name("net.ncnn.param")
            if done.returncode or not made.exists():
                last = (done.stderr or done.stdout).strip().splitlines()[-1:]
                raise NoForm(f"pnnx cannot convert it: {' '.join(last)}")
            os.replace(made.with_suffix(".bin"), file.with_suffix(".bin"))
            os.replace(made, file)
    return file


def _pnnx() -> str:
    """The converter's program, of the package pnnx or on the path."""
    spec = importlib.util.find_spec("pnnx")
    if spec is not None and spec.origin is not None:
        inside = Path(spec.origin).with_name("pnnx")
        if inside.exists():
            return str(inside)
    found = shutil.which("pnnx")
    if found is None:
        raise NoForm("needs pnnx to convert models: pip install pnnx")
    return found


if __name__ == "__main__":
    for each in sys.argv[2:]:
        print(form(sys.argv[1], each, 1))
