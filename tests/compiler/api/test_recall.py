"""A program whose kernels are known runs as it did, without writing them again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api import recall
from tilewright.compiler.errors import LoweringError
from tilewright.compiler.kernels import select
from tilewright.compiler.kernels.ir import Unwritten
from tilewright.compiler.store import Store
from tilewright.ops.operator import REGISTRY, Elementwise

Array = np.ndarray[Any, Any]
rng = np.random.default_rng(0)
X = rng.standard_normal((1, 3, 12, 12)).astype(np.float32)


def weights(*shape: int) -> Array:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * 0.3).astype(np.float32)


def network() -> tw.Graph:
    """Every recipe for constants, and kernels with scratch, in place and of several phases."""
    g = tw.Graph()
    x = g.input("x", X.shape)
    y = g.relu(g.conv(x, weights(24, 3, 3, 3), weights(24), pads=1))
    y = g.conv(y, weights(24, 24, 3, 3), weights(24), pads=1) + y
    y = g.conv(y, weights(24, 1, 3, 3), pads=1, group=24)
    y = g.conv(y, weights(24, 6, 1, 1), group=4)
    y = g.softmax(g.max_pool(y, kernel_shape=[2, 2], strides=[2, 2]), axis=1)
    y = g.reshape(y, shape=(6, 144)) @ weights(144, 10)
    g.output(y @ g.transpose(weights(10, 10), perm=[1, 0]) * weights(10), "y")
    return g


def small() -> tw.Graph:
    g = tw.Graph()
    x = g.input("x", X.shape)
    g.output(g.softmax(g.relu(x) * weights(12), axis=1) @ weights(12, 5), "y")
    return g


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refuse(*args: Any) -> Any:
    raise AssertionError("a kernel was chosen anew")


def entry(exe: tw.Executable) -> tuple[Any, bytes]:
    found = exe._compilation.kept
    assert found is not None
    return found.key, found.records


@pytest.mark.usefixtures("cache")
def test_nothing_is_written_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = tw.compile(network())
    with monkeypatch.context() as m:
        m.setattr(select, "_make", refuse)
        second = tw.compile(network())
        np.testing.assert_array_equal(second(X), first(X))
    for a, b in zip(
        first._compilation.launches, second._compilation.launches, strict=True
    ):  # fmt: skip
        phases = b.kernel.phases
        assert isinstance(phases, Unwritten) and phases._write is not None
        assert (a.args, a.ops, a.label) == (b.args, b.ops, b.label)
        for name in ("template", "version", "config", "params", "items", "inplace", "flops",
                     "bytes", "own_flops"):  # fmt: skip
            assert getattr(a.kernel, name) == getattr(b.kernel, name), name
    assert second.ir("kernels") == first.ir("kernels")
    assert second.kernels == first.kernels
    assert second.stats.built == 0


def test_native_code_that_is_gone_is_built_from_a_kernel_written_now(cache: Path) -> None:
    first = tw.compile(network())
    for file in Store().entries():
        if dict(file.key)["what"] == "cpu kernel":
            (cache / "entries" / file.name).unlink()
    second = tw.compile(network())
    assert second.stats.built == second.stats.distinct
    np.testing.assert_array_equal(second(X), first(X))


def test_a_saved_program_brings_what_it_knows(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tw.compile(network())
    first.save(tmp_path / "p.tw")
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    monkeypatch.setattr(select, "_make", refuse)
    loaded = tw.load(tmp_path / "p.tw")
    np.testing.assert_array_equal(loaded(X), first(X))
    loaded.save(tmp_path / "q.tw")
    assert (tmp_path / "q.tw").read_bytes() == (tmp_path / "p.tw").read_bytes()


@pytest.mark.usefixtures("cache")
def test_another_device_or_another_source_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    tw.compile(network(), threads=1)
    with monkeypatch.context() as m:
        m.setattr(select, "_make", refuse)
        tw.compile(network(), threads=1)
        with pytest.raises(AssertionError):
            tw.compile(network(), threads=2)
        m.setattr(recall, "templates_fingerprint", lambda: "other")
        with pytest.raises(AssertionError):
            tw.compile(network(), threads=1)


BAD: list[Any] = [
    None, 5, [], {}, {"template": "no such"}, {"version": 99}, {"version": "1"}, {"params": 3},
    {"params": []}, {"config": 1}, {"args": ["x"]}, {"args": None}, {"items": [-1]},
    {"inplace": [[0, 99]]}, {"flops": None},
]  # fmt: skip


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("bad", [*BAD, b"", b"[]", b"{", b"\xff"])
def test_what_is_no_record_is_made_again(bad: Any) -> None:
    first = tw.compile(small())
    key, good = entry(first)
    payload = bad
    if not isinstance(bad, bytes):
        found = json.loads(good)
        changed = {d: r | bad if isinstance(bad, dict) and bad else bad for d, r in found.items()}
        payload = json.dumps(changed).encode()
    Store().put(key, payload)
    np.testing.assert_array_equal(tw.compile(small())(X), first(X))
    assert Store().get(key) == good


@pytest.mark.usefixtures("cache")
def test_blobs_of_another_size_are_not_bound() -> None:
    first = tw.compile(small())
    key, good = entry(first)
    found = json.loads(good)
    for record in found.values():
        for p in record["params"]:
            p[2] += 1
    Store().put(key, json.dumps(found).encode())
    np.testing.assert_array_equal(tw.compile(small())(X), first(X))


@pytest.mark.usefixtures("cache")
def test_a_record_of_another_kernel_is_found_out_when_it_is_written() -> None:
    key, good = entry(tw.compile(small()))
    found = json.loads(good)
    for record in found.values():
        record["text"] = "0" * 64
    Store().put(key, json.dumps(found).encode())
    with pytest.raises(LoweringError, match="cache clear"):
        tw.compile(small())


@pytest.fixture
def registered() -> Iterator[None]:
    yield
    REGISTRY.pop("lift", None)


@pytest.mark.usefixtures("cache", "registered")
def test_a_users_operator_may_come_to_mean_something_else() -> None:
    def lifted(by: float) -> Array:
        @tw.operator("lift", traits=(Elementwise(),))
        class Lift:
            """x and a number."""

            def infer(x: Any) -> Any:  # type: ignore[misc]
                return x

            def compute(x: Any) -> Any:  # type: ignore[misc]
                return x + by

            def reference(x: Any) -> Any:  # type: ignore[misc]
                return x + by

        g = tw.Graph()
        g.output(g.op("lift", g.input("x", (3,))), "y")
        result: Array = tw.compile(g)(np.zeros(3, np.float32))
        del REGISTRY["lift"]
        return result

    np.testing.assert_array_equal([lifted(1), lifted(2)], [[1, 1, 1], [2, 2, 2]])
