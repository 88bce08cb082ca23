"""Devices: what tells them apart, what makes two of one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tilewright.compiler.codegen.cpu.target import NAMED, CpuTarget, host
from tilewright.compiler.tuning.fingerprint import (
    fingerprint,
    kernel_device,
    label,
    same_model,
)

AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9R14
stepping\t: 1

processor\t: 1
vendor_id\t: SomebodyElse
"""
ARM = """processor\t: 0
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd40
CPU revision\t: 1
"""
TARGET = NAMED["x86-64-avx512"]


def machine(root: Path, cpuinfo: str, caches: tuple[tuple[str, str, str], ...] = ()) -> Path:
    (root / "proc").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(cpuinfo)
    for k, found in enumerate(caches):
        folder = root / f"sys/devices/system/cpu/cpu0/cache/index{k}"
        folder.mkdir(parents=True)
        for name, text in zip(("level", "type", "size"), found, strict=True):
            (folder / name).write_text(text + "\n")
    return root


def test_a_fingerprint_is_canonical_json_of_the_first_processor(tmp_path: Path) -> None:
    caches = (("1", "Data", "32K"), ("1", "Instruction", "32K"), ("2", "Unified", "1024K"))
    text = fingerprint(TARGET, machine(tmp_path, AMD, caches))
    found = json.loads(text)
    assert text == json.dumps(found, sort_keys=True, separators=(",", ":"))
    assert (found["vendor"], found["family"], found["model"]) == ("AuthenticAMD", "25", "17")
    assert found["caches"] == ["L1 Data 32K", "L2 Unified 1024K"]
    assert "avx512f" in found["features"] and "lzcnt" not in found["features"]
    assert label(text) == "AMD EPYC 9R14 (AuthenticAMD 25/17/1, skylake-avx512)"


def test_arm_says_the_same_in_other_words(tmp_path: Path) -> None:
    found = json.loads(fingerprint(NAMED["aarch64-neon"], machine(tmp_path, ARM)))
    assert (found["vendor"], found["model"], found["stepping"]) == ("0x41", "0xd40", "1")
    assert found["features"] == ["neon"]


def test_a_machine_that_tells_nothing_has_a_name(tmp_path: Path) -> None:
    found = json.loads(fingerprint(TARGET, tmp_path / "nothing"))
    assert found["name"] and found["caches"] == []


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (("stepping\t: 1", "stepping\t: 2"), True),
        (("9R14", "9754"), True),
        (("model\t\t: 17", "model\t\t: 18"), False),
        (("cpu family\t: 25", "cpu family\t: 26"), False),
        (("AuthenticAMD", "GenuineIntel"), False),
    ],
)
def test_which_machines_are_of_one_model(
    change: tuple[str, str], same: bool, tmp_path: Path
) -> None:
    assert change[0] in AMD
    a = fingerprint(TARGET, machine(tmp_path / "a", AMD, (("3", "Unified", "32M"),)))
    b = fingerprint(TARGET, machine(tmp_path / "b", AMD.replace(*change)))
    assert a != b
    assert same_model(a, b) is same_model(b, a) is same


def test_a_lesser_target_is_another_device(tmp_path: Path) -> None:
    """What generated code uses of a machine decides how fast its kernels are."""
    root = machine(tmp_path, AMD)
    a, b = fingerprint(TARGET, root), fingerprint(NAMED["x86-64-avx2"], root)
    assert a != b and not same_model(a, b)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}"])
def test_text_that_is_no_fingerprint(text: str) -> None:
    assert not same_model(text, text)
    assert label(text) == "an unknown device"


def test_this_machine() -> None:
    text = fingerprint(host())
    assert same_model(text, text)
    assert text == fingerprint(host())


def test_templates_are_told_of_vectors_that_take_two_passes() -> None:
    halving = CpuTarget.of(TARGET.triple, "znver4", TARGET.features)
    assert (kernel_device(halving, 1).halves, kernel_device(TARGET, 1).halves) == (1, 0)
