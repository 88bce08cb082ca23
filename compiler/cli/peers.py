"""Other runtimes, made ready to run the same model with the same inputs and thread count."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Unavailable(Exception):
    """The peer cannot take part; says why, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a peer is to run. model: an .onnx file. forms: for some peers, the same model in another
    file; torch and ncnn do not read ONNX."""

    model: Path
    feeds: Mapping[str, Array]
    threads: int
    forms: Mapping[str, Path] = field(default_factory=dict)


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
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(_onnx(setting, "onnxruntime")), options, providers=["CPUExecutionProvider"]
    )
    feeds = dict(setting.feeds)
    return Peer("onnxruntime", onnxruntime.__version__, lambda: list(session.run(None, feeds)))


def openvino_peer(setting: Setting) -> Peer:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(_onnx(setting, "openvino")))
    model.reshape({name: list(a.shape) for name, a in setting.feeds.items()})
    # Without the hint it computes in bfloat16 wherever the CPU can. Whether its threads are pinned
    # to processors made no difference.
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
    """An exported program is compiled by inductor, its weights frozen into the code; TorchScript
    runs as it is."""
    file = _form(setting, "torch", "TorchScript (.pt) or an exported program (.pt2)")
    import torch

    torch.set_num_threads(setting.threads)
    args = [torch.from_numpy(np.ascontiguousarray(a)) for a in setting.feeds.values()]
    net: Any
    if file.suffix == ".pt2":
        from torch._inductor import config

        config.freezing = True
        # It chooses layouts itself: channels-last images made no difference.
        net = torch.compile(torch.export.load(file).module())
    else:
        net = torch.jit.load(str(file))

    def run() -> list[Array]:
        with torch.no_grad():  # freezing does not happen in inference mode
            y = net(*args)
        return [t.numpy() for t in (y if isinstance(y, tuple | list) else [y])]

    return Peer("torch", str(torch.__version__), run)


def ncnn_peer(setting: Setting) -> Peer:
    """A network for one sample, as pnnx converts it. ncnn has no batch: samples run in turn."""
    file = _form(setting, "ncnn", "a .param file with its .bin beside it, as pnnx writes them")
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = setting.threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(file)) or net.load_model(str(file.with_suffix(".bin"))):
        raise Unavailable(f"cannot load {file.name}: it has layers that ncnn does not know")
    inputs, outputs = list(net.input_names()), list(net.output_names())
    count = next(iter(setting.feeds.values())).shape[0]
    samples = [
        [ncnn.Mat(_narrow(a[k])).clone() for a in setting.feeds.values()] for k in range(count)
    ]

    def run() -> list[Array]:
        found: list[list[Array]] = [[] for _ in outputs]
        for mats in samples:
            extractor = net.create_extractor()
            for name, mat in zip(inputs, mats, strict=True):
                extractor.input(name, mat)
            for k, name in enumerate(outputs):
                status, mat = extractor.extract(name)
                if status:
                    raise RuntimeError(f"extracting {name} failed")
                found[k].append(np.array(mat))
        return [np.stack(y) for y in found]

    return Peer("ncnn", ncnn.__version__, run)


def _narrow(a: Array) -> Array:
    """ncnn has integers of 32 bits only."""
    return np.ascontiguousarray(a, np.int32) if a.dtype == np.int64 else np.ascontiguousarray(a)


_MAKERS: Final[dict[str, Callable[[Setting], Peer]]] = {
    "onnxruntime": onnxruntime_peer,
    "openvino": openvino_peer,
    "torch": torch_peer,
    "ncnn": ncnn_peer,
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
        raise Unavailable(f"cannot run this model: {_reason(e)}") from e


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _onnx(setting: Setting, name: str) -> Path:
    file = setting.forms.get(name, setting.model)
    if file.suffix != ".onnx":
        raise Unavailable(f"needs an .onnx file, not {str(file)!r}")
    return file


def _form(setting: Setting, name: str, what: str) -> Path:
    if name not in setting.forms:
        raise Unavailable(f"does not read ONNX: give the same model with --peer-model {name}=FILE, "
                          f"as {what}")  # fmt: skip
    return setting.forms[name]


def _reason(e: Exception) -> str:
    """The first line of a message, and the last, where the cause often stands."""
    lines = [x.strip() for x in str(e).splitlines() if x.strip()]
    return f"{type(e).__name__}: {' ... '.join(dict.fromkeys([*lines[:1], *lines[-1:]]))}"
