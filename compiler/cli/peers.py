"""Other runtimes, made ready to run the same model with the same inputs and thread count."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Unavailable(Exception):
    """The peer cannot take part; says why, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a peer is to run. model: an .onnx file. program: for torch, which does not read ONNX."""

    model: Path
    feeds: Mapping[str, Array]
    threads: int
    torch_program: Path | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A runtime with the model loaded. run() gives the outputs, in the model's order."""

    name: str
    version: str
    run: Callable[[], list[Array]]


def onnxruntime_peer(setting: Setting) -> Peer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(_onnx(setting)), options, providers=["CPUExecutionProvider"]
    )
    feeds = dict(setting.feeds)
    return Peer("onnxruntime", onnxruntime.__version__, lambda: list(session.run(None, feeds)))


def openvino_peer(setting: Setting) -> Peer:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(_onnx(setting)))
    model.reshape({name: list(a.shape) for name, a in setting.feeds.items()})
    # Without the hint it computes in bfloat16 wherever the CPU can.
    compiled = core.compile_model(model, "CPU", {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": setting.threads,
        "NUM_STREAMS": 1,
    })  # fmt: skip
    request = compiled.create_infer_request()
    feeds = dict(setting.feeds)
    count = len(compiled.outputs)

    def run() -> list[Array]:
        results = request.infer(feeds, share_inputs=True, share_outputs=True)
        return [results[k] for k in range(count)]

    return Peer("openvino", importlib.metadata.version("openvino"), run)


def torch_peer(setting: Setting) -> Peer:
    if setting.torch_program is None:
        raise Unavailable(
            "does not read ONNX: give the same model with --torch-program, as TorchScript (.pt) or "
            "as an exported program (.pt2)"
        )
    import torch

    torch.set_num_threads(setting.threads)
    file = str(setting.torch_program)
    net: Any = torch.export.load(file).module() if file.endswith(".pt2") else torch.jit.load(file)
    args = [torch.from_numpy(np.ascontiguousarray(a)) for a in setting.feeds.values()]

    def run() -> list[Array]:
        with torch.inference_mode():
            y = net(*args)
        return [t.numpy() for t in (y if isinstance(y, tuple | list) else [y])]

    return Peer("torch", str(torch.__version__), run)


_MAKERS: Final[dict[str, Callable[[Setting], Peer]]] = {
    "onnxruntime": onnxruntime_peer,
    "openvino": openvino_peer,
    "torch": torch_peer,
}
PEERS: Final = tuple(_MAKERS)


def prepare(name: str, setting: Setting) -> Peer:
    """The peer with the model loaded. Raises Unavailable where it is missing or fails on it."""
    if not installed(name):
        raise Unavailable(f"is not installed: pip install {name}")
    try:
        return _MAKERS[name](setting)
    except Unavailable:
        raise
    except Exception as e:  # another project's errors: any class, any module
        raise Unavailable(f"cannot run this model: {_first_line(e)}") from e


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _onnx(setting: Setting) -> Path:
    if setting.model.suffix != ".onnx":
        raise Unavailable(f"needs an .onnx file, not {str(setting.model)!r}")
    return setting.model


def _first_line(e: Exception) -> str:
    lines = str(e).strip().splitlines()
    return f"{type(e).__name__}: {lines[0] if lines else ''}"
