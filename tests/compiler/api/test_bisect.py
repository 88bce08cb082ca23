"""Planted faults: the right part of the compiler is named each time, and nothing is left behind."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api.slices import cut
from tilewright.compiler.cli import main
from tilewright.compiler.errors import InputError, OptionError, TargetError
from tilewright.compiler.graph import textfile
from tilewright.compiler.graph.verify import verify
from tilewright.compiler.tuning.cold import flush

from ...fuzz.graphs import random_feeds, random_graph
from . import faults
from .faults import FAULTS, Fault, network

NET = network()
INPUTS = {"x": np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype(np.float32)}
tw.compile(NET), flush()  # what a process builds once for itself is built by now


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No code that was built without the fault."""
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_right_compiler_has_no_fault(empty_cache: Path) -> None:
    found = tw.bisect(NET, INPUTS)
    assert not found.is_wrong and "nothing is wrong" in str(found)
    assert not empty_cache.exists()


def test_there_are_enough() -> None:
    assert len(FAULTS) >= 20
    assert {f.kind for f in FAULTS} >= {"pass", "memory plan", "code generation", "template"}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_culprit_is_named(fault: Fault, empty_cache: Path) -> None:
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as m:
        fault.plant(m)
        found = tw.bisect(NET, INPUTS)
    assert (found.kind, fault.name in found.name) == (fault.kind, True), f"{found}"
    assert found.grounds
    assert dict(os.environ) == before and not empty_cache.exists()


@pytest.mark.parametrize(
    ("plant", "rewrite"),
    [
        (faults.canonicalize_sign, "canonicalize: subtract_constant sub"),
        (faults.forgotten_shift, "fold_scales: conv 'conv1'"),
        (faults.folded_constant, "fold_constants: mul"),
    ],
)
def test_fuel_names_the_rewrite(
    plant: faults.Plant, rewrite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    found = tw.bisect(NET, INPUTS)
    assert found.fuel is not None and found.rewrite.startswith(rewrite), found
    monkeypatch.setenv("TILEWRIGHT_FUEL", str(found.fuel - 1))
    assert not tw.bisect(NET, INPUTS).is_wrong
    monkeypatch.setenv("TILEWRIGHT_FUEL", str(found.fuel))
    assert tw.bisect(NET, INPUTS).is_wrong


@pytest.mark.parametrize(
    ("plant", "blob", "node"),
    [
        (faults.depthwise, "depth", "depth"),
        (faults.gemm, "shift", "dense"),
        (faults.operator_expression, "right_act", "right_act"),
        (faults.forgotten_shift, "", "conv1"),
    ],
)
def test_the_first_blob_and_its_nodes_are_named(
    plant: faults.Plant, blob: str, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    found = tw.bisect(NET, INPUTS)
    assert node in found.nodes and (not blob or blob in found.blob), found


@pytest.mark.parametrize(
    "plant",
    [
        faults.depthwise,
        faults.forgotten_shift,
        pytest.param(faults.places_in_one_another, marks=pytest.mark.slow),
    ],
)
def test_a_small_part_reproduces_it(plant: faults.Plant, tmp_path: Path) -> None:
    folder = tmp_path / "repro"
    with pytest.MonkeyPatch.context() as m:
        plant(m)
        found = tw.bisect(NET, INPUTS, folder=folder)
        assert _status(folder / "repro.py") == 1
        if (folder / "kernel.py").exists():
            assert _status(folder / "kernel.py") == 1
    assert set(found.files) == {str(p) for p in folder.iterdir()}
    part = textfile.read(folder / "slice.tw.txt")
    assert len(part.ops) < len(NET.ops)
    assert _status(folder / "repro.py") == 0
    if (folder / "kernel.py").exists():
        assert _status(folder / "kernel.py") == 0


def _status(script: Path) -> int:
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    return int(stop.value.code or 0)


def test_parts_of_a_graph_are_graphs() -> None:
    for k in range(len(NET.ops)):
        part = cut(NET, {k, max(k - 2, 0)})
        verify(part)
        assert {op.outputs for op in part.ops} <= {op.outputs for op in NET.ops}


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    textfile.write(NET, tmp_path / "net.tw.txt")
    np.savez(tmp_path / "x.npz", **INPUTS)
    arguments = ["bisect", "net.tw.txt", "--input", "x.npz"]
    assert main.main(arguments) == 0
    assert "nothing is wrong" in capsys.readouterr().out and not list(tmp_path.glob("bisect-*"))
    faults.depthwise(monkeypatch)
    assert main.main(arguments) == 1
    assert "at fault: template depthwise" in capsys.readouterr().out
    assert (tmp_path / "bisect-net.tw" / "repro.py").exists()
    assert main.main([*arguments, "--json", "-o", "there"]) == 1
    assert json.loads(capsys.readouterr().out)["kind"] == "template"


def test_donated_inputs_are_run_as_such() -> None:
    assert not tw.bisect(NET, INPUTS, donate=["x"]).is_wrong


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(TargetError, match="cuda:sm_90"):
        tw.bisect(NET, INPUTS, target="cuda:sm_90")
    with pytest.raises(OptionError, match="no input"):
        tw.bisect(NET, INPUTS, donate=["q"])
    with pytest.raises(InputError, match="no input 'q'; the inputs are x"):
        tw.bisect(NET, {"q": INPUTS["x"]})
    with pytest.raises(InputError, match="must have the shape"):
        tw.bisect(NET, {"x": INPUTS["x"][:, :3]})
    with pytest.raises(InputError, match="2 arrays for 1 inputs"):
        tw.bisect(NET, [INPUTS["x"]] * 2)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_found_where_nothing_is(seed: int) -> None:
    graph = random_graph(seed, 20)
    found = tw.bisect(graph, random_feeds(graph, 1))
    assert not found.is_wrong, found
