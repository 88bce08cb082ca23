"""The benchmark for GPUs from end to end, without one: its ladder in the simulator, and the whole
script with a stub driver and PyTorch on the CPU in its processes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.codegen.cuda.assemble import assembled, can_assemble
from tilewright.compiler.codegen.cuda.frontend import lowered
from tilewright.compiler.codegen.cuda.operations import stored_as
from tilewright.compiler.codegen.cuda.ptx import kernel_ptx
from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.codegen.cuda.warpgroups import EXACT

from ..compiler.codegen.cuda.divergence import undivided
from ..compiler.codegen.cuda.simulate import run_source
from ..compiler.runtime.cuda.conftest import library, stub  # noqa: F401  fixtures
from ..compiler.runtime.cuda.stub import Stub
from .test_gpu import gpu_script

RUNGS = gpu_script("rungs").RUNGS
STAND_IN = Path(__file__).with_name("gpu_stand_in.py")
LONG = ("a product: ", "wgmma, both", "wgmma, b across, 256")


def rungs(*long: str) -> list[Any]:
    return [pytest.param(r, id=r.name, marks=[pytest.mark.slow] * r.name.startswith(long))
            for r in RUNGS]  # fmt: skip


@pytest.mark.parametrize("rung", rungs(*LONG))
def test_a_rung_computes_what_it_says(rung: Any) -> None:
    trial, fill = rung.build(), gpu_script("rungs").FILL
    source = kernel_source(trial.kernel)
    arrays: dict[str, Any] = {}
    for p in trial.kernel.params:
        kind = stored_as(p.dtype).numpy
        given = trial.given.get(p.name, np.full(p.nbytes, fill, np.uint8))
        arrays[p.name] = np.ascontiguousarray(given).view(kind).ravel().copy()
    run_source(source.text, source.entries,
               [(p.name, arrays[p.name], p.is_written) for p in trial.kernel.params])  # fmt: skip
    assert trial.wanted
    for name, wanted in trial.wanted.items():
        got = arrays[name].view(wanted.dtype)
        np.testing.assert_allclose(got, wanted, 0, trial.relative * np.abs(wanted).max())


def test_every_thing_of_the_dialect_is_on_the_ladder() -> None:
    """All that only some GPUs have, and every kind of product."""
    source = "".join(kernel_source(r.build().kernel).text for r in RUNGS)
    wanted = {*EXACT, "stmatrix", "cp_async_zero", "ldmatrix_t", "tma_cast_2d", "tma_store_2d",
              "mbarrier_arrive_at", "cluster_barrier", "barrier_of", "proxy_fence",
              "wgmma_rows_f16", "wgmma_held_f16", "wgmma_wait_held"}  # fmt: skip
    assert not [name for name in wanted if f"{name}(" not in source]


@pytest.mark.slow
@pytest.mark.parametrize("rung", rungs())
def test_a_rung_as_machine_code(rung: Any) -> None:
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    kernel, target = rung.build().kernel, CudaTarget(f"sm_{rung.needs}")
    source = kernel_source(kernel)
    ptx = kernel_ptx(kernel, source.entries, lowered(source, kernel.params, target), target)
    assert not undivided(ptx)
    if can_assemble():
        made = assembled(ptx, target)
        assert all(u.local_bytes == 0 for u in made.usage.values())
        assert not made.losses


@pytest.fixture
def ladder(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    """The script, whose kernels the stub knows."""
    script, loading = gpu_script("ladder"), gpu_script("loading")
    load = loading.load

    def noted(kernels: Any, *args: Any) -> Any:
        for k in kernels:
            stub.knows_kernel(k)
        return load(kernels, *args)

    monkeypatch.setattr(loading, "load", noted)
    return script


ON_A_DEVICE = ("memory of the device", "a store", "TMA descriptors in a CUDA graph, then others",
               "a cluster in a CUDA graph, then with other addresses")  # fmt: skip


@pytest.mark.parametrize("name", ON_A_DEVICE)
def test_a_rung_on_a_device(ladder: Any, name: str) -> None:
    (_, row) = ladder.climb(ladder.names().index(name))
    assert row.get("ok"), row


def test_what_a_device_has_not(ladder: Any, stub: Stub) -> None:  # noqa: F811
    stub.start("8.9")
    (_, row) = ladder.climb(ladder.names().index("TMA multicast"))
    assert row["skipped"] == "it needs sm_90"


def test_a_wrong_rung_is_told(ladder: Any, stub: Stub, monkeypatch: Any) -> None:  # noqa: F811
    number = ladder.names().index("a store")
    known = stub.knows_kernel

    def spoiled(kernel: Any) -> None:
        known(kernel)
        for name, (k, text, entry) in stub.kernels.items():
            stub.kernels[name] = k, text.replace("i32(", "i32(1 + "), entry

    monkeypatch.setattr(stub, "knows_kernel", spoiled)
    (_, row) = ladder.climb(number)
    assert "192 of 192 are wrong: [0] 1 not 0, [1] 2 not 1" in row["error"], row


@pytest.mark.slow
def test_the_whole_script(
    library: Path, tmp_path: Path, monkeypatch: Any, capsys: Any  # noqa: F811
) -> None:  # fmt: skip
    """As on a machine with a GPU, in processes of its own; nothing fails."""
    for module in ("torch", "onnx"):
        pytest.importorskip(module)
    check = gpu_script("check")
    monkeypatch.setattr(check, "PROGRAM", (sys.executable, str(STAND_IN)))
    monkeypatch.setenv("STAND_IN_DRIVER", str(library))
    monkeypatch.setenv("STAND_IN_RUNGS", "3")
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "store"))
    (tmp_path / "store").mkdir()
    network = ("model", "squeezenet", "--batch", "1", "--precision", "f32")
    names = ("products", "copying", "launching")
    chosen = [p for p in check.parts() if p.name in names or p.args[:6] == network]
    few = [replace(p, seconds=300) for p in chosen]
    monkeypatch.setattr(check, "parts", lambda: few)
    said = {"arch": "sm_90", "seed": 5, "source": "an older one",
            "made_by": "numba=1,numba-cuda=1,llvmlite=1,assembler=x"}  # fmt: skip
    (tmp_path / "store" / "prepared.json").write_text(json.dumps(said))
    monkeypatch.setattr(sys, "argv", [
        "check.py", "--budget", "1000", "--jobs", "2", "--output", str(tmp_path), "--only",
        "ladder", "calibration", "scan", "products", "copying", "launching", "squeezenet",
    ])  # fmt: skip
    with pytest.raises(SystemExit) as end:
        check.main()
    out = capsys.readouterr().out
    assert end.value.code == 0, out
    assert "seed 5" in out and "code made before: numba=1" in out and "of other source" in out
    assert "ladder: 3 of 3 rungs are right, none is wrong" in out
    assert "scan           1 candidates are right" in out
    files = {f.name: json.loads(f.read_text()) for f in tmp_path.glob("gpu_*.json")}
    assert set(files) == {f"gpu_{n}.json" for n in ("ladder", "calibration", "families", "kernels",
                                                    "models")}  # fmt: skip
    chip = next(r["chip"] for r in files["gpu_calibration.json"] if "chip" in r)
    (model,) = files["gpu_models.json"]
    assert set(model["differs_by"]) >= {"torch eager", "torch graph", "torch.compile"}
    assert {"f32", "f64", "half", "tf32", "byte"} == set(chip["rates"]) and chip["memory"] > 0
