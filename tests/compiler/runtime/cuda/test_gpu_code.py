"""Code in the store that another machine made, with other versions of what makes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tilewright.compiler.codegen.cuda.assemble import Assembled
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.errors import OptionError
from tilewright.compiler.runtime import gpu_code
from tilewright.compiler.store import Store

from ...codegen.cuda.programs import gpu_launches
from .nets import rows

TARGET = CudaTarget("sm_90")
OTHERS = {"numba": "9.9", "numba-cuda": "none", "llvmlite": "7.7"}


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with the code of a kernel, made by what is installed and an assembler; then other
    versions are here, and none."""
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    monkeypatch.setattr(gpu_code, "can_assemble", lambda: True)
    monkeypatch.setattr(gpu_code, "assembler", lambda: "/far/away/ptxas")
    monkeypatch.setattr(gpu_code, "assembled", lambda ptx, target: Assembled(b"\x7fELF", {}))
    store = Store(tmp_path / "store")
    assert load(store).built == 1
    named = ",".join(f"{k}={v}" for k, v in gpu_code.makers().items())
    monkeypatch.setenv("MADE_BY", named)
    monkeypatch.setattr(gpu_code, "can_assemble", lambda: False)
    monkeypatch.setattr(gpu_code, "assembler", lambda: None)
    monkeypatch.setattr(gpu_code, "_versions", lambda: OTHERS)
    return store


def load(store: Store) -> gpu_code.GpuCodes:
    return gpu_code.load([gpu_launches(rows())[1][0].kernel], TARGET, store)


def test_code_of_others_is_not_taken_unasked(filled: Store) -> None:
    found = load(filled)
    (code,) = found.codes.values()
    assert found.built == 1 and code.machine is None


def test_code_of_others(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpu_code.VARIABLE, os.environ["MADE_BY"])
    monkeypatch.setattr(gpu_code, "lowered", None)  # nothing is made here
    found = load(filled)
    (code,) = found.codes.values()
    assert found.built == 0 and code.machine is not None and code.machine.cubin == b"\x7fELF"


def test_what_is_not_there_is_made_here(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    named = "numba=1,numba-cuda=1,llvmlite=1,assembler=none"
    monkeypatch.setenv(gpu_code.VARIABLE, named)
    assert load(filled).built == 1
    monkeypatch.delenv(gpu_code.VARIABLE)
    assert load(filled).built == 0, "under the versions that are here"


@pytest.mark.parametrize("wrong", ["any", "numba=1", "numba=1,numba-cuda=1,llvmlite=1,ptxas=2"])
def test_makers_are_named_in_full(
    wrong: str, filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(gpu_code.VARIABLE, wrong)
    with pytest.raises(OptionError, match=r"expected numba=\.\.\.,numba-cuda"):
        load(filled)
