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
    gc.unfreeze()  # what other tests may have frozen
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


def test_what_was_made_inside_is_not_searched_as_new() -> None:
    gc.enable()
    gc.collect()
    with paused_collector():
        made = [[k] for k in range(5000)]
    young = {id(x) for generation in (0, 1) for x in gc.get_objects(generation)}
    assert not young & set(map(id, made))
    assert gc.get_freeze_count() == 0


def test_frozen_objects_stay_frozen() -> None:
    gc.enable()
    gc.freeze()
    try:
        with paused_collector():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


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
