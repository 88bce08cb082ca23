"""What a benchmark on a GPU asks of PyTorch: arrays, rivals, the truth, and times by events.

Everything that needs torch or a device is here, so that tests can put another `Lab` in its place.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

Call = Callable[[], Any]

SAMPLES: Final = 15
CALLS: Final = 10
AHEAD: Final = 1_000_000
"""Cycles that the device waits, about half a millisecond, while the host queues what is timed."""
FLUSHED: Final = 256 << 20
"""Bytes that are written before a cold run: several times any second cache."""


class Lab(Protocol):
    """One device. Arrays and results are of the library's own kind."""

    def about(self) -> dict[str, Any]:
        """The device, the driver, the versions."""

    def random(self, dims: Sequence[int], kind: str) -> Any:
        """An array on the device, of a standard normal distribution."""

    def empty(self, dims: Sequence[int], kind: str) -> Any:
        """An array on the device, filled with NaN."""

    def host(self, array: Any) -> Any:
        """As an array of numpy's."""

    def rivals(self, what: str, arrays: Sequence[Any], **settings: Any) -> Mapping[str, Call]:
        """Calls of the library that compute the same."""

    def error(self, what: str, arrays: Sequence[Any], got: Any, **settings: Any) -> float:
        """The largest error of a result, relative to the largest magnitude of what float64 gives.
        NaN where the result holds one."""

    def samples(self, call: Call, cold: bool = False) -> list[float]:
        """Seconds of a call on the device, time after time. cold: nothing is in the second cache;
        else what the call before left there is."""

    def wait(self) -> None:
        """Until all is done. Raises what the device has to complain about."""


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, and the middle half's bounds."""
    if len(samples) < 2:
        return {"median": samples[0], "low": samples[0], "high": samples[0]}
    low, middle, high = statistics.quantiles(samples, n=4)
    return {"median": middle, "low": low, "high": high}


class TorchLab:
    """A Lab of the first device. tf32: whether float32 products may round factors to tf32."""

    def __init__(self, tf32: bool = False) -> None:
        import torch

        self.torch = torch
        if not torch.cuda.is_available():
            raise SystemExit("torch sees no GPU here")
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.manual_seed(1)
        self.kinds = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
                      "f64": torch.float64, "i8": torch.int8}  # fmt: skip
        self._flush = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")

    def about(self) -> dict[str, Any]:
        t = self.torch
        p = t.cuda.get_device_properties(0)
        return {"device": p.name, "capability": f"{p.major}.{p.minor}",
                "multiprocessors": p.multi_processor_count, "torch": t.__version__,
                "cuda": t.version.cuda, "cudnn": t.backends.cudnn.version()}  # fmt: skip

    def random(self, dims: Sequence[int], kind: str) -> Any:
        return self.torch.randn(*dims, device="cuda").to(self.kinds[kind])

    def empty(self, dims: Sequence[int], kind: str) -> Any:
        return self.torch.full(tuple(dims), float("nan"), device="cuda", dtype=self.kinds[kind])

    def host(self, array: Any) -> Any:
        return array.cpu().numpy()

    def rivals(self, what: str, arrays: Sequence[Any], **settings: Any) -> Mapping[str, Call]:
        if what == "chain":
            return self._chain(*arrays, settings["count"])
        compute = self._compute(what, settings)
        if what == "conv":
            last = [a.contiguous(memory_format=self.torch.channels_last) for a in arrays]
            return {"cudnn nchw": lambda: compute(*arrays), "cudnn nhwc": lambda: compute(*last)}
        return {"torch": lambda: compute(*arrays)}

    def _chain(self, x: Any, w: Any, count: int) -> Mapping[str, Call]:
        """One product after another, eager and as a graph."""
        t = self.torch

        def eager() -> Any:
            y = x
            for _ in range(count):
                y = y @ w
            return y

        side = t.cuda.Stream()
        side.wait_stream(t.cuda.current_stream())
        with t.cuda.stream(side):
            eager()
        t.cuda.current_stream().wait_stream(side)
        graph = t.cuda.CUDAGraph()
        with t.cuda.graph(graph):
            eager()
        return {"torch eager": eager, "torch graph": graph.replay}

    def _compute(self, what: str, settings: Mapping[str, Any]) -> Callable[..., Any]:
        t, f = self.torch, self.torch.nn.functional
        known: dict[str, Callable[..., Any]] = {
            "matmul": t.matmul,
            "linear": f.linear,
            "conv": lambda x, w: f.conv2d(x, w, **settings),
            "attention": f.scaled_dot_product_attention,
            "softmax": lambda x: t.softmax(x, -1),
            "normalised": lambda x, s, b: f.layer_norm(x, x.shape[-1:], s, b),
            "added": lambda x, z: t.relu(x + z),
            "copied": lambda x: x.clone(),
        }
        return known[what]

    def error(self, what: str, arrays: Sequence[Any], got: Any, **settings: Any) -> float:
        with self.torch.no_grad():
            wide = [a.double() for a in arrays]
            if what == "conv" and wide[0].shape[0] > 2:  # samples do not depend on each other
                wide[0], got = wide[0][-2:], got[-2:]
            truth = self._compute(what, settings)(*wide)
            worst = (got.double() - truth).abs().max() / truth.abs().max()
        return float(worst)

    def samples(self, call: Call, cold: bool = False) -> list[float]:
        t = self.torch
        for _ in range(3):
            call()
        t.cuda.synchronize()
        found = []
        calls = 1 if cold else CALLS
        for _ in range(SAMPLES):
            begin, end = (t.cuda.Event(enable_timing=True) for _ in range(2))
            t.cuda._sleep(AHEAD)  # the host's part of calls passes meanwhile
            if cold:
                self._flush.zero_()
            begin.record()
            for _ in range(calls):
                call()
            end.record()
            t.cuda.synchronize()
            found.append(begin.elapsed_time(end) / 1e3 / calls)
        return found

    def wait(self) -> None:
        self.torch.cuda.synchronize()
