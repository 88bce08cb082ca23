"""A GPU that is not there."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import devlib
from .stub import Stub, build_library


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    return build_library(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def stub(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """The driver with one device of compute capability 9.0."""
    gc.freeze()  # every test collects its own garbage, and looks at nothing older
    made = Stub(library, monkeypatch).start()
    yield made
    try:
        made.finish()
    finally:
        devlib.LATER.clear()
        made.start()  # so that nothing of this test's is known to the next driver
        gc.unfreeze()  # compilations of later tests would count what is frozen, one by one
