"""What a farm's worker says of itself, who may take part, and a cluster of real workers."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.autotune.records import Records
from tilewright.autotune.task import canonical
from tilewright.compiler.api import crew
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.kernels.device import gpu_device
from tilewright.compiler.runtime.linux import available_processors
from tilewright.compiler.tuning import farmhand
from tilewright.compiler.tuning.fingerprint import fingerprint, kernel_device

from .clusters import cluster

HERE = kernel_device(host(), 1)


def test_this_machine_may_take_part_in_tuning_for_itself() -> None:
    told = json.loads(farmhand.describe())["cpu"]
    assert told["device"] == fingerprint(host())
    for threads in (1, available_processors()):
        assert farmhand.objection(told, kernel_device(host(), threads)) is None
    why = farmhand.objection(told, kernel_device(host(), told["threads"] + 1))
    assert why is not None and "its threads is" in why


@pytest.mark.parametrize(
    ("change", "why"),
    [({"tilewright": "0.0"}, "its tilewright is '0.0'"), ({"vector_bytes": 4}, "its vector_bytes"),
     ({"templates": {}}, "its templates"), ({"device": None}, "names no device"),
     ({"faults": "segv@1"}, "its faults is 'segv@1'"), *(
         ({f.name: 0}, f"its {f.name} is 0, here it is {getattr(HERE, f.name)}")
         for f in fields(HERE))],
)  # fmt: skip
def test_who_differs_may_not(change: dict[str, object], why: str) -> None:
    found = {**farmhand.description(fingerprint(host()), HERE), **change}
    assert why in str(farmhand.objection(found, HERE))


def test_who_cannot_say_what_it_is_may_not() -> None:
    assert "cannot say what it is: boom" in str(farmhand.objection("boom", HERE))
    gpu, neither = gpu_device((9, 0)), farmhand.description(fingerprint(host()), HERE)
    assert farmhand.offer("boom", gpu) == "boom"
    assert farmhand.offer({"cpu": neither, "gpu": "no driver"}, gpu) == "no driver"
    assert farmhand.offer({"cpu": neither, "gpu": "no driver"}, HERE) == neither
    assert "another's" in str(farmhand.offer(neither, HERE))


@pytest.mark.parametrize("stranger", [False, True])
def test_a_farm_of_other_models_warns(monkeypatch: pytest.MonkeyPatch, stranger: bool) -> None:
    told = farmhand.description(fingerprint(host()), HERE)
    if stranger:
        told["device"] = canonical({**json.loads(told["device"]), "model": "another"})

    class Known:
        def __init__(self, *_: object) -> None: ...
        def close(self) -> None: ...

        def members(self) -> dict[str, object]:
            return {"tcp://a": {"cpu": told}, "tcp://b": "boom"}

        def runner(self, address: str, device: str) -> str:
            return address

    monkeypatch.setattr(crew, "Farm", Known)
    made = crew.farm_crew("tcp://x", host(), HERE)
    assert list(made.runners) == ["tcp://a"] and "tcp://b takes no part" in made.warnings[0]
    assert any("no worker is of this machine's model" in w for w in made.warnings) == stranger


@pytest.mark.slow
def test_a_model_is_tuned_on_a_farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    with cluster(tmp_path, [{}, {}]) as (address, _):
        g = tw.Graph("net")
        for name, width in (("a", 96), ("b", 160)):
            w = np.random.default_rng(0).standard_normal((128, width), dtype=np.float32)
            x = g.input(f"x{name}", (64, 128))
            g.output(g.relu(g.matmul(x, g.parameter(f"w{name}", w))), f"y{name}")
        report = tw.tune(g, budget="90s", threads=1, farm=address)
    assert report.tried > 0 and report.failed == 0 and report.warnings == ()
    rows = Records(tmp_path / "cache" / "records.sqlite").rows()
    assert len(rows) == report.tried and len({r.origin for r in rows}) == 2
    assert {r.device for r in rows} == {fingerprint(host())}
