"""The doctor finds what is there, what is missing, and what helps."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from tilewright.compiler.cli import doctor, main, peers

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]


def package(requirement: str) -> str:
    found = re.match(r"[\w-]+", requirement)
    assert found
    return found[0]


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is True
    states = {f["topic"]: f["state"] for f in report["findings"]}
    for topic in ("CPU", "vectors", "threads", "native code", "cache", "numpy", "llvmlite"):
        assert states[topic] == "ok"
    assert main.main(["doctor"]) == 0
    assert "compiles and runs" in capsys.readouterr().out


def test_the_lists_are_those_of_the_project() -> None:
    assert set(doctor.REQUIRED) == {package(r) for r in PROJECT["dependencies"]}
    extras = PROJECT["optional-dependencies"]
    for name, (remedy, _) in doctor.OPTIONAL.items():
        (extra,) = re.findall(r"tilewright\[(\w+)\]", remedy)
        assert name in {package(r) for r in extras[extra]}
    assert {package(r) for r in extras["bench"]} == {*peers.PEERS, "pnnx"}  # makes ncnn models


def test_what_is_missing_comes_with_the_line_that_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    assert main.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"openvino +missing .*pip install 'tilewright\[bench\]'", out)
    assert re.search(r"llvmlite +bad +not installed +pip install llvmlite", out)


def test_a_cpu_that_this_machine_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CPU", "z80")
    assert main.main(["doctor"]) == 1
    assert "unknown CPU 'z80'" in capsys.readouterr().out


def test_a_cache_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "file"))
    (finding,) = (f for f in doctor.examine() if f.topic == "cache")
    assert finding.state == "missing"
    assert "not usable" in finding.value
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    (finding,) = (f for f in doctor.examine() if f.topic == "cache")
    assert "switched off" in finding.value
