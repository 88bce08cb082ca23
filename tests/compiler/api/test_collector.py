"""The collector of cycles rests while something is compiled, and only then."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

import tilewright as tw
from tilewright.compiler.api.collector import paused_collector


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    was = gc.isenabled()
    yield
    (gc.enable if was else gc.disable)()


def graph() -> tw.Graph:
    g = tw.Graph("net")
    g.output(g.relu(g.input("x", (3,))))
    return g


def test_it_rests_inside_however_deep() -> None:
    gc.enable()
    with paused_collector():
        with paused_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_runs_again_after_an_error() -> None:
    gc.enable()
    with pytest.raises(ValueError), paused_collector():
        raise ValueError
    assert gc.isenabled()


def test_compile_pauses_it() -> None:
    seen = []
    gc.enable()
    tw.compile(graph(), progress=lambda *_: seen.append(gc.isenabled()))
    assert seen and not any(seen)
    assert gc.isenabled()


def test_it_stays_off_where_it_was_off() -> None:
    gc.disable()
    tw.compile(graph())
    assert not gc.isenabled()
