"""The same runtime on a real GPU, where there is one: what a simulated driver cannot show.

In the order in which to look when something is wrong: the doctor, results, launching, products by
every unit, memory, arrays of PyTorch, times, saved programs, single kernels, faults, tuning. Where
kernels are wrong or hang, `benchmarks/gpu/check.py --only ladder` says by what (docs/gpu.md).
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.cli import doctor
from tilewright.compiler.errors import TargetError
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.runtime.cuda_device import all_facts, device

from .devlib import PackArray
from .nets import A, X, convnet, rows, softmax, two


def there_is_a_device() -> bool:
    try:
        return bool(all_facts())
    except TargetError:
        return False


pytestmark = pytest.mark.skipif(not there_is_a_device(), reason="no NVIDIA GPU")


def close(got: Any, x: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(got), softmax(x), 1e-5, 1e-7)


def test_the_doctor_is_content() -> None:
    assert {f.topic: f.state for f in doctor._gpu()}["GPU code"] == "ok"


@pytest.mark.parametrize("variable", ["", "TILEWRIGHT_CUDA_GRAPH=off", "TILEWRIGHT_POISON=1"])
def test_results(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variable:
        monkeypatch.setenv(*variable.split("="))
    graph = convnet()
    exe = tw.compile(graph, target="cuda")
    for x in (X, -X, X[:, ::-1]):
        np.testing.assert_allclose(exe(x), evaluate(graph, {"x": x})["prob"], 1e-4, 1e-5)
    assert exe.launching.startswith("one by one" if variable else "one graph")


def test_the_driver_translates_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.compiler.runtime.gpu_code.can_assemble", lambda: False)
    close(tw.compile(rows(), target="cuda")(A), A)


UNITS = {"float32": ("f32", "standard", 1e-4), "tf32": ("f32", "reduced", 2e-3),
         "f16": ("f16", "standard", 2e-3)}  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("sizes", [(64, 64, 64), (500, 136, 200), (31, 65, 127)], ids=str)
def test_products(unit: str, sizes: tuple[int, int, int]) -> None:
    """In a graph, whose arrays lie elsewhere in every call: descriptors are made anew."""
    kind, numerics, relative = UNITS[unit]
    m, n, k = sizes
    g = tw.Graph("product")
    a, b = g.input("a", (m, k), kind), g.input("b", (k, n), kind)
    g.output(g.relu(g.matmul(a, b)), "y")
    exe = tw.compile(g.build(), target="cuda", numerics=numerics)
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal(s).astype(np.float16 if kind == "f16" else np.float32)
            for s in ((m, k), (k, n)))  # fmt: skip
    kept = []
    for sign in (1, -1):
        got = exe(PackArray(device(0), sign * x), PackArray(device(0), y))
        kept.append(got)
        want = np.maximum(sign * x.astype(np.float64) @ y, 0)
        np.testing.assert_allclose(got.numpy(), want, 0, relative * np.abs(want).max())
    assert exe.launching == "one graph"


def test_memory_comes_back() -> None:
    exe = tw.compile(rows(), target="cuda")
    exe(A)
    with device(0) as d:
        before = d.free_bytes() or 0
    large = tw.Graph("large")
    large.output(large.softmax(large.input("x", (4096, 4096)), axis=1), "y")
    other = tw.compile(large, target="cuda")
    other(np.zeros((4096, 4096), np.float32))
    other.close()
    with device(0) as d:
        assert (d.free_bytes() or 0) > before - (16 << 20)


def test_threads() -> None:
    exe, wrong = tw.compile(two(), target="cuda"), []

    def work(k: int) -> None:
        for j in range(50):
            x = A * (k + j)
            if not np.allclose(exe(x, x)[0], softmax(2 * x), 1e-4, 1e-6):
                wrong.append((k, j))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_arrays_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    exe = tw.compile(rows(), target="cuda")
    x = torch.from_numpy(A).cuda()
    y = exe(x)
    assert isinstance(y, torch.Tensor) and y.is_cuda
    close(y.cpu(), A)
    out = torch.empty_like(y)
    assert exe(x, out=out) is out
    close(out.cpu(), A)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for k in range(200):  # the memory of each has a new user at once
            z = exe(x * k, stream=side)
            kept = z + 0.0
            del z
        close(kept.cpu(), A * 199)
    for k in range(200):
        z = exe(x * k)
    close(z.cpu(), A * 199)


def test_times() -> None:
    found = tw.compile(convnet(), target="cuda").profile(X)
    assert all(0 < r.seconds < 1e-3 for r in found.rows), str(found)


def test_saved_programs(tmp_path: Path) -> None:
    exe = tw.compile(convnet(), target="cuda")
    exe.save(tmp_path / "net.tw")
    for target in (None, "cuda:0"):
        got = tw.load(tmp_path / "net.tw", target=target)
        assert got.stats.built == 0 and got(X).tobytes() == exe(X).tobytes()


def test_nothing_is_wrong_launch_by_launch(tmp_path: Path) -> None:
    assert not tw.bisect(convnet(), {"x": X}, target="cuda").is_wrong
    script = tmp_path / "kernel.py"
    script.write_text(tw.compile(convnet(), target="cuda").repro("k0"))
    assert subprocess.run([sys.executable, str(script)]).returncode == 0


FAULT = '''
from tilewright.compiler.codegen.cuda.entry import Entry
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.errors import DeviceLostError
from tilewright.compiler.runtime.cuda_device import device
from tilewright.compiler.runtime.cuda_launch import KernelLaunch, bind
from tilewright.compiler.runtime.cuda_modules import load_modules
from tilewright.compiler.runtime.gpu_code import GpuCode
ptx = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry k() { .reg .b64 %a; mov.b64 %a, 64; st.global.b32 [%a], 1; ret; }
"""
x = KernelLaunch("k", 0, (1, 1, 1), (1, 1, 1), ())
with device(0) as d:
    modules = load_modules(d, CudaTarget("sm_80"), [GpuCode((Entry("k", 1, 1),), ptx, None)], [x])
    stream = d.stream()
    (launch,) = bind([x], modules.functions, lambda place: None)
    launch.start(d, stream.value)
    try:
        d.call("cuStreamSynchronize", stream.value)
    except DeviceLostError as e:
        assert e.code == 700, e
try:
    with device(0):
        print("not lost")
except DeviceLostError:
    print("lost")
'''


def test_a_fault() -> None:
    done = subprocess.run([sys.executable, "-c", FAULT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "lost"


def test_tuning() -> None:
    report = tw.tune(convnet(), target="cuda", budget="20s")
    assert report.tasks and not any(t.failed for t in report.tasks), str(report)
