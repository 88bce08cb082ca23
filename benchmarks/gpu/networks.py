"""Whole models beside PyTorch and ONNX Runtime on the same device, and what a launch costs.

Precisions: "f32" is exact float32 on both sides, "tf32" lets both round factors of products,
"bf16" and "f16" are the same model stored in half floats. Of PyTorch: eager, eager as a CUDA graph,
`torch.compile`, and its "max-autotune". Calls follow each other, and inputs and outputs are on the
device, so that whatever the host takes longer than the device counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import models
import numpy as np
import onnx
from lab import Call, spread
from onnx import TensorProto, numpy_helper

import tilewright as tw
from tilewright.compiler.graph.bfloat16 import bits_of
from tilewright.compiler.graph.ir import Graph

Row = dict[str, Any]
PRECISIONS: Final = {"f32": "standard", "tf32": "reduced", "bf16": "standard", "f16": "standard"}
COMPARED: Final = ("f32", "bf16", "tf32")
"""Those that `check.py` compares; f16 is as fast as bf16."""
HALVES: Final = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NAMES: Final = ("resnet50", "transformer", "mobilenet", "vgg_cifar", "squeezenet", "mlp",
                "digitnet", "gru_sent", "segnet", "densenet121")  # fmt: skip
LIMITS: Final = {"f32": 1e-3, "tf32": 3e-2, "bf16": 1e-1, "f16": 3e-2}
CHAINS: Final = (1, 10, 100)
SAMPLES: Final = 15
SAMPLE_SECONDS: Final = 0.02


class ModelLab(Protocol):
    """What a comparison of a model needs of other libraries."""

    def feeds(self, arrays: Mapping[str, Any], precision: str) -> list[Any]:
        """Arrays on the device."""

    def empty(self, specs: Any) -> list[Any]:
        """Arrays for results, as an executable's `outputs` describe them."""

    def numpy(self, array: Any) -> Any:
        """As float32 on the host."""

    def rivals(
        self, name: str, batch: int, precision: str, file: Path, feeds: list[Any], autotune: bool
    ) -> Iterator[tuple[str, Callable[[], Call]]]:
        """What makes the call of each rival, those that are made soonest first."""

    def wait(self) -> None:
        """Until all is done."""


def of_precision(name: str, batch: int, precision: str) -> Path:
    """The model's file; in f16 and bf16, a file of its own."""
    file = models.path(name, batch)
    kind = HALVES.get(precision)
    return file if kind is None else models.variant(file, precision, partial(in_half, kind=kind))


def in_half(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """All float32 of a model as halves, in place; but what an operator takes in float32 only, the
    scales of Resize for example, stays. kind: TensorProto.FLOAT16 or BFLOAT16."""
    g = model.graph
    kept = _always_single(model)
    for t in g.initializer:
        if t.data_type == TensorProto.FLOAT and t.name not in kept:
            t.CopyFrom(rounded(t, kind))
    for v in (*g.input, *g.output):
        if v.type.tensor_type.elem_type == TensorProto.FLOAT and v.name not in kept:
            v.type.tensor_type.elem_type = kind
    del g.value_info[:]
    for n in g.node:
        if kept.isdisjoint(n.output):
            _halve_attributes(n, kind)
    return model


def _halve_attributes(n: onnx.NodeProto, kind: int) -> None:
    """What says that a node makes float32."""
    for a in n.attribute:
        if a.type == onnx.AttributeProto.TENSOR and a.t.data_type == TensorProto.FLOAT:
            a.t.CopyFrom(rounded(a.t, kind))
        elif n.op_type == "Cast" and a.name == "to" and a.i == TensorProto.FLOAT:
            a.i = kind
        elif n.op_type == "Constant" and a.name in ("value_float", "value_floats"):
            value = np.asarray(onnx.helper.get_attribute_value(a), np.float32)
            t = rounded(numpy_helper.from_array(value), kind)
            a.CopyFrom(onnx.helper.make_attribute("value", t))


def _always_single(model: onnx.ModelProto) -> set[str]:
    """Names of values that some operator takes as float32 and as nothing else."""
    version = {o.domain: o.version for o in model.opset_import}
    found = set()
    for n in model.graph.node:
        takes = onnx.defs.get_schema(n.op_type, version[n.domain], n.domain).inputs
        found |= {x for x, formal in zip(n.input, takes, strict=False)
                  if formal.type_str == "tensor(float)"}  # fmt: skip
    return found


def rounded(t: TensorProto, kind: int) -> TensorProto:
    """The nearest halves, ties to even."""
    values = numpy_helper.to_array(t).astype(np.float32)
    half = bits_of(values) if kind == TensorProto.BFLOAT16 else values.astype(np.float16)
    raw = half.astype(half.dtype.newbyteorder("<")).tobytes()
    return onnx.helper.make_tensor(t.name, kind, t.dims, raw, raw=True)


def compared(
    name: str, batch: int, precision: str, lab: ModelLab, autotune: bool = False,
    compile_: Callable[..., Any] = tw.compile,
) -> Iterator[Row]:  # fmt: skip
    """A row for the model that grows: it comes again after each rival."""
    title = f"{name} x{batch} {precision}"
    yield {"at": title}
    file = of_precision(name, batch, precision)
    began = time.perf_counter()
    exe = compile_(file, target="cuda", numerics=PRECISIONS[precision])
    arrays = models.sample(name, batch=batch)
    feeds = lab.feeds(arrays, precision)
    out = lab.empty(exe.outputs)

    def ours() -> None:
        exe(*feeds, out=out if len(out) > 1 else out[0])

    ours()
    lab.wait()
    row: Row = {"name": title, "compile_seconds": time.perf_counter() - began,
                "kernels": len(exe.kernels), "launching": exe.launching,
                "templates": _counted(k.template for k in exe.kernels)}  # fmt: skip
    row["seconds"] = {"tilewright": spread(samples(ours, lab.wait))}
    row["on_device"] = sum(exe.launch_seconds(*feeds, rounds=5))
    yield row
    mine = lab.numpy(out[0])
    for rival, make in lab.rivals(name, batch, precision, file, feeds, autotune):
        yield {"at": f"{title}: {rival}"}
        try:
            call = make()
            result = call()
            lab.wait()
            theirs = lab.numpy(result)
            error = float(np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-30))
            row["seconds"][rival] = spread(samples(call, lab.wait))
            # The program's own again, so that a clock that changed meanwhile shows.
            row["seconds"]["tilewright"] = spread(samples(ours, lab.wait))
            row.setdefault("differs_by", {})[rival] = error
            if not error <= LIMITS[precision]:
                row["error"] = f"results differ from {rival}'s by {error:.3g} of the largest"
        except Exception as e:
            row.setdefault("failed", {})[rival] = f"{type(e).__name__}: {e}"[:300]
        yield row


def _counted(names: Iterator[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for n in names:
        found[n] = found.get(n, 0) + 1
    return found


def samples(call: Call, wait: Callable[[], None]) -> list[float]:
    """Seconds of a call among many that follow each other."""
    wait()
    began = time.perf_counter()
    for _ in range(3):
        call()
    wait()
    each = (time.perf_counter() - began) / 3
    calls = min(max(int(SAMPLE_SECONDS / max(each, 1e-9)), 1), 1000)
    found = []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        found.append((time.perf_counter() - began) / calls)
    return found


class TorchModels:
    """A ModelLab of the first device, with ONNX Runtime where its GPU package is."""

    def __init__(self, tf32: bool) -> None:
        from lab import TorchLab

        self.lab = TorchLab(tf32)
        self.torch = self.lab.torch
        self.tf32 = tf32

    def feeds(self, arrays: Mapping[str, Any], precision: str) -> list[Any]:
        found = [self.torch.from_numpy(a).cuda() for a in arrays.values()]
        kind = self.lab.kinds[precision] if precision in HALVES else None
        return [x.to(kind) if kind and x.is_floating_point() else x for x in found]

    def empty(self, specs: Any) -> list[Any]:
        # numpy has no bf16: its bits are uint16 there.
        kinds = {"float32": "f32", "float64": "f64", "float16": "f16", "uint16": "bf16"}
        made = []
        for s in specs:
            kind, other = kinds.get(str(s.dtype)), getattr(self.torch, str(s.dtype), None)
            made.append(self.lab.empty(s.shape, kind) if kind
                        else self.torch.empty(s.shape, dtype=other, device="cuda"))  # fmt: skip
        return made

    def numpy(self, array: Any) -> Any:
        return array.detach().float().cpu().numpy()

    def wait(self) -> None:
        self.torch.cuda.synchronize()

    def rivals(
        self, name: str, batch: int, precision: str, file: Path, feeds: list[Any], autotune: bool
    ) -> Iterator[tuple[str, Callable[[], Call]]]:
        def network() -> Any:
            if name in models.TORCH_NAMES:
                import torch_models

                made = torch_models.build(name)
            else:
                from onnx_torch import module

                made = module(models.path(name))
            made = made.cuda().eval()
            return made.to(self.lab.kinds[precision]) if precision in HALVES else made

        def call_of(f: Any) -> Call:
            def call() -> Any:
                with self.torch.inference_mode():
                    found = f(*feeds)
                return found[0] if isinstance(found, tuple) else found

            return call

        def last() -> Call:
            made = network().to(memory_format=self.torch.channels_last)
            given = [x.contiguous(memory_format=self.torch.channels_last) if x.ndim == 4 else x
                     for x in feeds]  # fmt: skip
            return self._graphed(made, given)

        compile_ = self.torch.compile
        yield "torch eager", lambda: call_of(network())
        yield "torch graph", lambda: self._graphed(network(), feeds)
        if feeds[0].ndim == 4:
            yield "torch graph nhwc", last
        if precision != "bf16":
            yield "onnxruntime", lambda: self._onnxruntime(file, feeds)
        yield "torch.compile", lambda: call_of(compile_(network()))
        if autotune:
            yield "torch max-autotune", lambda: call_of(compile_(network(), mode="max-autotune"))

    def _graphed(self, network: Any, feeds: list[Any]) -> Call:
        t = self.torch
        with t.inference_mode():
            side = t.cuda.Stream()
            side.wait_stream(t.cuda.current_stream())
            with t.cuda.stream(side):
                for _ in range(3):
                    network(*feeds)
            t.cuda.current_stream().wait_stream(side)
            graph = t.cuda.CUDAGraph()
            with t.cuda.graph(graph):
                out = network(*feeds)

        def call() -> Any:
            graph.replay()
            return out[0] if isinstance(out, tuple) else out

        return call

    def _onnxruntime(self, file: Path, feeds: list[Any]) -> Call:
        import onnxruntime as ort

        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise ModuleNotFoundError("onnxruntime is here without CUDA (onnxruntime-gpu has it)")
        how = {"use_tf32": int(self.tf32), "cudnn_conv_algo_search": "EXHAUSTIVE"}
        session = ort.InferenceSession(str(file), providers=[("CUDAExecutionProvider", how)])
        binding = session.io_binding()
        kinds = {self.torch.float32: np.float32, self.torch.float16: np.float16,
                 self.torch.int64: np.int64}  # fmt: skip
        for i, x in zip(session.get_inputs(), feeds, strict=True):
            binding.bind_input(i.name, "cuda", 0, kinds[x.dtype], tuple(x.shape), x.data_ptr())
        for o in session.get_outputs():
            binding.bind_output(o.name, "cuda")

        def call() -> Any:
            session.run_with_iobinding(binding)
            return binding.get_outputs()[0]

        first = call().numpy()
        fixed = self.torch.from_numpy(first)

        def timed() -> Any:
            call()
            return fixed

        return timed


def chain(count: int, width: int = 256) -> Graph:
    """So many small products, one of the other."""
    g = tw.Graph("chain")
    y, held = g.input("x", (8, width)), g.input("w", (width, width))
    for _ in range(count):
        y = g.matmul(y, held)
    g.output(y, "y")
    return g.build()


def launching(
    lab: Any, compile_: Callable[..., Any] = tw.compile, counts: Sequence[int] = CHAINS,
    width: int = 256,
) -> Iterator[Row]:  # fmt: skip
    """What a call costs beside its kernels: chains of small products, by their number."""
    for count in counts:
        name = f"launch of {count} small kernels"
        yield {"at": name}
        exe = compile_(chain(count, width), target="cuda")
        x, w = lab.random((8, width), "f32"), lab.random((width, width), "f32")
        w *= width**-0.5  # so that nothing grows without bounds
        out = lab.empty((8, width), "f32")

        def call(exe: Any = exe, given: Any = (x, w), out: Any = out) -> None:
            exe(*given, out=out)

        row: Row = {"name": name, "kernels": len(exe.kernels), "launching": exe.launching}
        row["seconds"] = {"tilewright": spread(samples(call, lab.wait))}
        row["on_device"] = spread(lab.samples(call))
        for rival, theirs in lab.rivals("chain", [x, w], count=count).items():
            row["seconds"][rival] = spread(samples(theirs, lab.wait))
        yield row
