"""What a farm's worker says of itself, who may take part, and a cluster of real workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.autotune import farm
from tilewright.autotune.records import Records
from tilewright.autotune.task import canonical
from tilewright.compiler.api import crew
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.runtime.linux import available_processors
from tilewright.compiler.tuning import farmhand
from tilewright.compiler.tuning.fingerprint import fingerprint, kernel_device

HERE = kernel_device(host(), 1)


def test_this_machine_may_take_part_in_tuning_for_itself() -> None:
    told = json.loads(farmhand.describe())
    assert told["device"] == fingerprint(host())
    for threads in (1, available_processors()):
        assert farmhand.objection(told, host(), kernel_device(host(), threads)) is None
    why = farmhand.objection(told, host(), kernel_device(host(), told["threads"] + 1))
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
    found = {**farmhand.description(host(), HERE), **change}
    assert why in str(farmhand.objection(found, host(), HERE))


def test_who_cannot_say_what_it_is_may_not() -> None:
    assert "cannot say what it is: boom" in str(farmhand.objection("boom", host(), HERE))


@pytest.mark.parametrize("stranger", [False, True])
def test_a_farm_of_other_models_warns(monkeypatch: pytest.MonkeyPatch, stranger: bool) -> None:
    told = farmhand.description(host(), HERE)
    if stranger:
        told["device"] = canonical({**json.loads(told["device"]), "model": "another"})

    class Known:
        def __init__(self, *_: object) -> None: ...
        def close(self) -> None: ...

        def members(self) -> dict[str, object]:
            return {"tcp://a": told, "tcp://b": "boom"}

        def runner(self, address: str, device: str) -> str:
            return address

    monkeypatch.setattr(crew, "Farm", Known)
    made = crew.farm_crew("tcp://x", host(), HERE)
    assert list(made.runners) == ["tcp://a"] and "tcp://b takes no part" in made.warnings[0]
    assert any("no worker is of this machine's model" in w for w in made.warnings) == stranger


@pytest.mark.slow
def test_a_model_is_tuned_on_a_farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    where = tmp_path / "scheduler.json"
    shared = ["--scheduler-file", str(where), "--no-dashboard"]
    commands = [
        ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", *shared],
        *[["dask_worker", "--no-nanny", "--nthreads", "1", *shared] for _ in range(2)],
    ]
    running = [
        subprocess.Popen([sys.executable, "-m", f"distributed.cli.{c[0]}", *c[1:]], cwd=tmp_path,
                         env={**os.environ, "TILEWRIGHT_CACHE": str(tmp_path / f"worker{k}")},
                         stderr=subprocess.DEVNULL)
        for k, c in enumerate(commands)
    ]  # fmt: skip
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    try:
        address, until = "", time.monotonic() + 60
        while not address and time.monotonic() < until:
            time.sleep(0.1)
            if where.exists() and where.read_text():
                address = json.loads(where.read_text())["address"]
        joined = farm.Farm(address, farmhand.measure, farmhand.describe)
        while len(joined.members()) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        joined.close()
        g = tw.Graph("net")
        for name, width in (("a", 96), ("b", 160)):
            w = np.random.default_rng(0).standard_normal((128, width), dtype=np.float32)
            x = g.input(f"x{name}", (64, 128))
            g.output(g.relu(g.matmul(x, g.parameter(f"w{name}", w))), f"y{name}")
        report = tw.tune(g, budget="90s", threads=1, farm=address)
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()
    assert report.tried > 0 and report.failed == 0 and report.warnings == ()
    rows = Records(tmp_path / "cache" / "records.sqlite").rows()
    assert len(rows) == report.tried and len({r.origin for r in rows}) == 2
    assert {r.device for r in rows} == {fingerprint(host())}
