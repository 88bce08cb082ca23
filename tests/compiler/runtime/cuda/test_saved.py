"""Saved programs for GPUs: they come back as they were, or an error says what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.autotune.task import Candidate
from tilewright.compiler.api import gpu
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.errors import ArchitectureError, ArtifactError, NoDeviceError, TargetError
from tilewright.compiler.graph.text import to_text
from tilewright.compiler.kernels.device import gpu_device
from tilewright.compiler.kernels.select import coded_groups, digests_of
from tilewright.compiler.options import options
from tilewright.compiler.runtime import gpu_code, gpu_saved
from tilewright.compiler.tuning.choices import Choice
from tilewright.compiler.tuning.problem import problem_of

from ...api.archives import edited, members, reseal
from .nets import A, X, convnet, rows, softmax
from .stub import Stub
from .test_program import fake_assembler


def saved(path: Path, graph: Any, target: str = "cuda:sm_90", **options: Any) -> Path:
    tw.compile(graph, target=target, **options).save(path)
    return path


def again(stub: Stub, path: Path, **given: Any) -> Any:
    """The program in a file, which the stub can run."""
    exe = tw.load(path, **given)
    stub.knows(exe)
    return exe


def test_a_loaded_program_computes_the_same_bits_and_builds_nothing(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exe = stub.compile(convnet())
    exe.save(tmp_path / "p.tw")
    want = exe(X)
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    found = again(stub, tmp_path / "p.tw")
    assert found.stats.built == 0 < found.stats.distinct
    assert found(X).tobytes() == want.tobytes()
    assert found.program().constant_bytes == exe.program().constant_bytes
    assert to_text(found.graph) == to_text(exe.graph) and found.ir("ptx") == exe.ir("ptx")
    found.save(tmp_path / "again.tw")
    assert (tmp_path / "again.tw").read_bytes() == (tmp_path / "p.tw").read_bytes()


def test_weights_are_in_the_file_as_kernels_read_them(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensor cores read constant factors of odd sizes packed."""
    g = tw.Graph("packed")
    w = np.random.default_rng(2).standard_normal((63, 41)).astype(np.float16)
    g.output(g.matmul(g.input("x", (17, 63), "f16"), g.constant(w, "w")), "y")
    exe = stub.compile(g.build())
    exe.save(tmp_path / "p.tw")
    exe.save(tmp_path / "bare.tw", packed=False)
    assert any(n.startswith("packed/") for n in members(tmp_path / "p.tw"))
    assert not any(n.startswith("packed/") for n in members(tmp_path / "bare.tw"))
    x = np.random.default_rng(3).standard_normal((17, 63)).astype(np.float16)
    want = exe(x).tobytes()
    assert again(stub, tmp_path / "bare.tw")(x).tobytes() == want
    found = again(stub, tmp_path / "p.tw")
    for launch in found._compilation.launches:  # nothing is packed
        for a in launch.args:
            if not (a is None or isinstance(a, str)):
                monkeypatch.setattr(type(a.make), "__call__", None)
    assert found(x).tobytes() == want


def test_machine_code_is_used_where_nothing_assembles(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as m:
        m.setattr(gpu_code, "can_assemble", lambda: True)
        m.setattr(gpu_code, "assembler", lambda: "fake saved")
        m.setattr(gpu_code, "assembled", fake_assembler)
        path = saved(tmp_path / "p.tw", rows())
    exe = again(stub, path)
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)
    assert "cuModuleLoadDataEx cubin" in stub.log
    assert any(n.endswith(".cubin") for n in members(path))


def test_choices_are_kept(stub: Stub, tmp_path: Path) -> None:
    target = CudaTarget("sm_90")
    build = gpu.gpu_builder(rows(), target, options())
    graph, seen = build({}).graph, gpu_device(target.capability)
    (group,) = coded_groups(graph)
    problem = problem_of(graph, group.ops, group.outputs, seen, "standard")
    other: Candidate = problem.space()[-1]
    assert other != problem.default()
    build({digests_of(graph)[group.shape]: Choice(other, "by hand")}).save(tmp_path / "p.tw")
    (kernel,) = again(stub, tmp_path / "p.tw").kernels
    assert (kernel.config, kernel.origin) == (dict(other.config), "by hand")


def test_without_a_device_the_first_call_says_so(stub: Stub, tmp_path: Path) -> None:
    path = saved(tmp_path / "p.tw", rows())
    stub.start("8.0")
    said = []
    for exe in (tw.compile(rows(), target="cuda:sm_90"), tw.load(path)):
        assert "reduce_max" in exe.ir("fused")
        with pytest.raises(NoDeviceError, match=r"devices here are Stub 8\.0 \(sm_80\)") as e:
            exe(A)
        said.append(str(e.value))
    assert said[0] == said[1]


def test_the_device_can_be_named(stub: Stub, tmp_path: Path) -> None:
    """Also one that needs the driver to translate the PTX."""
    old, new = (saved(tmp_path / f"{t}.tw", rows(), f"cuda:{t}") for t in ("sm_80", "sm_90"))
    stub.start("8.0,9.0,9.0")
    assert again(stub, new).program().device.number == 1
    assert again(stub, new, target="cuda:2").program().device.number == 2
    exe = again(stub, old, target="cuda:1")
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)
    assert exe.program().device.number == 1
    assert tw.load(new, target="cuda:sm_90")
    for target in ("cuda", "cuda:sm_80", "cpu", "tpu"):
        with pytest.raises(ArchitectureError, match=rf"'{target}': .*new.tw|sm_90") as e:
            tw.load(new, target=target)
        assert f"compile the model with target='{target}'" in str(e.value)
    with pytest.raises(TargetError, match="cuda:7"):
        tw.load(new, target="cuda:7")


def test_a_program_for_cpus_is_not_loaded_for_gpus(stub: Stub, tmp_path: Path) -> None:
    tw.compile(rows()).save(tmp_path / "p.tw")
    with pytest.raises(TargetError, match=r"target='cuda': .*p\.tw' is for CPUs"):
        tw.load(tmp_path / "p.tw", target="cuda")


def test_damage_is_noticed(stub: Stub, tmp_path: Path) -> None:
    data = bytearray(saved(tmp_path / "p.tw", rows()).read_bytes())
    path = tmp_path / "flipped.tw"
    rng = np.random.default_rng(5)
    for at in [*rng.integers(0, len(data), 40).tolist(), len(data) - 1]:
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"flipped\.tw"):
            tw.load(path)
        data[:] = (tmp_path / "p.tw").read_bytes()
        path.write_bytes(data[:at])
        with pytest.raises(ArtifactError, match=r"truncated|damaged"):
            tw.load(path)


@pytest.mark.parametrize(
    "change",
    [
        b"[]", b"{", b"\xff", b'{"entries": [{"name": "k"}]}', b'{"entries": 3}',
        b'{"entries": [{"name": "k", "blocks": -1, "threads": 3, "tensor_maps": []}]}',
        b'{"entries": [{"name": 7, "blocks": 1, "threads": 3, "tensor_maps": []}]}',
        b'{"entries": [{"name": "k", "blocks": 1, "threads": 3, "tensor_maps": [{}]}]}',
    ],
)  # fmt: skip
def test_code_that_is_none_is_refused(stub: Stub, tmp_path: Path, change: bytes) -> None:
    parts = members(saved(tmp_path / "p.tw", rows()))
    (name,) = (n for n in parts if n.startswith("objects/") and n.endswith(".json"))
    with pytest.raises(ArtifactError, match=r"q\.tw' is malformed: its code"):
        tw.load(reseal(tmp_path / "q.tw", parts | {name: change}))


def test_an_architecture_that_nobody_knows(stub: Stub, tmp_path: Path) -> None:
    path = saved(tmp_path / "p.tw", rows())
    for arch in ("sm_999", 7):
        with pytest.raises(ArtifactError, match=r"which Tilewright .* does not know"):
            tw.load(edited(path, tmp_path / "q.tw", target={"gpu": arch}))


def test_code_of_another_generator_is_made_anew(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "p.tw", rows())
    monkeypatch.setattr(gpu_saved, "code_fingerprint", lambda: "another")
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    exe = again(stub, path)
    assert exe.stats.built == exe.stats.distinct == 1
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)


LOADED = """
import sys
import tilewright as tw
exe = tw.load(sys.argv[1])
print(exe.stats.built, len(exe.ir("ptx")) > 1000, "numba" in sys.modules)
"""


def test_loading_needs_no_numba(stub: Stub, tmp_path: Path) -> None:
    path = saved(tmp_path / "p.tw", rows())
    done = subprocess.run([sys.executable, "-c", LOADED, str(path)], capture_output=True, text=True,
                          env={"PATH": "", "TILEWRIGHT_CACHE": "off", **_here()})  # fmt: skip
    assert done.stdout.split() == ["0", "True", "False"], done.stderr


def _here() -> dict[str, str]:
    import os

    return {k: os.environ[k] for k in ("PYTHONPATH", "VIRTUAL_ENV") if k in os.environ}


def test_the_members_are_what_other_tools_read(stub: Stub, tmp_path: Path) -> None:
    exe = tw.compile(rows(), target="cuda:sm_90")
    exe.save(tmp_path / "p.tw")
    parts = members(tmp_path / "p.tw")
    (ptx,) = (d for n, d in parts.items() if n.endswith(".ptx"))
    assert ptx.decode() in exe.ir("ptx") and b".target sm_90" in ptx
    manifest = json.loads(parts["manifest.json"])
    assert manifest["target"] == {"gpu": "sm_90"}
