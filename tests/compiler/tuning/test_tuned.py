"""Compilations use what is on record: the right configs, where they fit, and nothing else."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.autotune.exchange import dump
from tilewright.autotune.outcome import Failure, Measurement, Outcome
from tilewright.autotune.row import Row
from tilewright.autotune.task import Candidate, Key
from tilewright.compiler.api.compile import analyse
from tilewright.compiler.cli import main
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.errors import ArtifactError
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.inspect.views import Compilation
from tilewright.compiler.kernels import select
from tilewright.compiler.kernels.ir import Prepared
from tilewright.compiler.records import open_records
from tilewright.compiler.tuning import tuned
from tilewright.compiler.tuning.explain import explain
from tilewright.compiler.tuning.fingerprint import fingerprint
from tilewright.compiler.tuning.problem import Problem
from tilewright.compiler.tuning.tasks import Use, tasks_of

from ..api.archives import members, reseal
from .nets import NETS, analysed, device, net

Array = np.ndarray[Any, Any]
Pick = Callable[[Use], Candidate | None]

NAMES = ("residual", "branches", "attention")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def took(seconds: float, rounds: int = 20) -> Measurement:
    return Measurement(seconds, seconds * 0.999, seconds * 1.001, rounds)


def last(use: Use) -> Candidate:
    return use.task.space[-1]


def keep(
    uses: list[Use], pick: Pick = last, *, fast: Outcome | None = None, slow: Outcome | None = None,
    key: Callable[[Key], Key] = lambda k: k,
) -> dict[Candidate, int]:  # fmt: skip
    """Record the default of every task, and as faster one that `pick` says. Which those are, with
    the number of launches."""
    picked: dict[Candidate, int] = {}
    with open_records(writing=True, strict=True) as records:
        for use in uses:
            task, chosen = use.task, pick(use)
            records.add(key(task.key), task.default, slow or took(2e-3), is_default=True,
                        features=task.features)  # fmt: skip
            if chosen is not None and chosen != task.default:
                records.add(key(task.key), chosen, fast or took(1e-3), features=task.features)
                picked[chosen] = picked.get(chosen, 0) + len(use.launches)
    return picked


def feeds(exe: tw.Executable, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {s.name: rng.standard_normal(s.shape).astype(s.dtype) for s in exe.inputs}


def check(exe: tw.Executable, g: Any, tolerance: float = 2e-5) -> None:
    given = feeds(exe)
    truth = evaluate(g.build(), given)
    for name, y in exe.run(given).items():
        error = np.abs(y - truth[name]).max() / np.abs(truth[name]).max()
        assert error < tolerance, name


def in_use(exe: tw.Executable) -> dict[Candidate, int]:
    """Launches that are not default ones, by what they were made of."""
    found: dict[Candidate, int] = {}
    versions = tuned.VERSIONS
    for k in exe.kernels:
        if k.origin.startswith("tuned"):
            made = Candidate(k.template, versions[k.template], k.config)
            found[made] = found.get(made, 0) + 1
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("numerics", ["standard", "reproducible"])
def test_what_is_on_record_runs_and_is_right(name: str, numerics: str) -> None:
    default = tw.compile(net(name), numerics=numerics, threads=2)
    assert {k.origin for k in default.kernels} == {"default"}
    picked = keep(tasks_of(analysed(name, numerics), device(analysed(name, numerics))))
    exe = tw.compile(net(name), numerics=numerics, threads=2)
    assert in_use(exe) == picked and picked
    check(exe, net(name))
    if numerics == "reproducible":
        for n, y in default.run(feeds(exe)).items():
            np.testing.assert_array_equal(exe.run(feeds(exe))[n], y)
    origins = {k.origin for k in exe.kernels if k.origin != "default"}
    assert all("2.00x as fast as the default" in o for o in origins)
    assert "2.00x as fast as the default" in exe.ir("kernels")
    plain = tw.compile(net(name), numerics=numerics, threads=2, tune=False)
    assert plain.kernels == default.kernels


def test_chosen_kernels_are_recalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is written, and no space is listed."""
    c = analysed("residual")
    keep(tasks_of(c, device(c)))
    first = tw.compile(net("residual"), threads=2)

    def refuse(*args: Any) -> Any:
        raise AssertionError("made again")

    monkeypatch.setattr(select, "_make", refuse)
    monkeypatch.setattr(Problem, "candidates", refuse)
    monkeypatch.setattr(Problem, "default", refuse)
    again = tw.compile(net("residual"), threads=2)
    assert again.kernels == first.kernels and in_use(again)
    assert again.stats.built == 0


def test_without_a_file_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("a problem was made")

    monkeypatch.setattr(tuned, "problems_of", refuse)
    tw.compile(net("attention"))
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    tw.compile(net("attention"))


def winograd(m: int | None) -> Pick:
    """The first candidate with this tile; without a tile, the first direct convolution."""

    def pick(use: Use) -> Candidate | None:
        found = (c for c in use.task.space if c.template in ("winograd", "direct_conv"))
        tiled = {c.template == "winograd" for c in use.task.space}
        return next((c for c in found if c.config.get("m") == m), None) if any(tiled) else None

    return pick


@pytest.mark.parametrize("m", [None, 2, 4])
def test_algorithms_are_candidates_of_each_other(m: int | None) -> None:
    """Whatever the pass suggested, and for all convolutions that the algorithm can compute."""
    c = analysed("residual")
    assert [x.kernel.template for x in c.launches].count("winograd") == 1
    keep(tasks_of(c, device(c)), winograd(m))
    exe = tw.compile(net("residual"), threads=2)
    tiles = [x for x in exe._compilation.launches if x.kernel.template == "winograd"]
    assert len(tiles) == (m is not None)
    for launch in tiles:
        assert dict(launch.kernel.config)["m"] == m
        (packed,) = (a for a in launch.args if isinstance(a, Prepared) and "winograd" in a.recipe)
        assert f"m={m}" in packed.recipe
    check(exe, net("residual"))


def test_ties_and_slower_candidates_leave_the_default() -> None:
    c = analysed("residual")
    for fast in (took(1.99e-3), took(3e-3), Failure("wrong", "off by 1")):
        keep(tasks_of(c, device(c)), fast=fast)
        exe = tw.compile(net("residual"), threads=2)
        assert {k.origin for k in exe.kernels} == {"default"}


def test_a_default_that_fails_is_replaced() -> None:
    c = analysed("attention")
    picked = keep(tasks_of(c, device(c)), slow=Failure("timeout", "too slow"))
    exe = tw.compile(net("attention"), threads=2)
    assert in_use(exe) == picked
    assert all(k.origin == "default" or "default" not in k.origin for k in exe.kernels)


def test_of_several_defaults_the_one_of_now_counts() -> None:
    """Templates may have had another default when a row was taken."""
    c = analysed("attention")
    uses = tasks_of(c, device(c))
    keep(uses, fast=took(2e-3))
    with open_records(writing=True, strict=True) as records:
        for use in uses:
            was = use.task.space[1]
            assert was != use.task.default
            records.add(use.task.key, was, took(2e-3), is_default=True)
    assert in_use(tw.compile(net("attention"), threads=2)) == {}


def test_other_numbers_of_threads_are_other_problems() -> None:
    c = analysed("attention")
    keep(tasks_of(c, device(c)))
    exe = tw.compile(net("attention"), threads=1)
    assert {k.origin for k in exe.kernels} == {"default"}


# --------------------------------------------------------------------------- other devices


def altered(**fields: Any) -> Callable[[Key], Key]:
    place = json.loads(fingerprint(host())) | fields
    text = json.dumps(place, sort_keys=True, separators=(",", ":"))
    return lambda k: Key(k.problem, text, k.numerics)


def test_records_of_the_same_model_are_used() -> None:
    c = analysed("attention")
    picked = keep(tasks_of(c, device(c)), key=altered(stepping="77", caches=["L3 Unified 1K"]))
    exe = tw.compile(net("attention"), threads=2)
    assert in_use(exe) == picked
    assert any(" on " in k.origin for k in exe.kernels), "it says where they come from"


def test_records_of_other_models_are_not() -> None:
    c = analysed("attention")
    keep(tasks_of(c, device(c)), key=altered(model="1", family="2"))
    exe = tw.compile(net("attention"), threads=2)
    assert in_use(exe) == {}


def test_own_records_go_first() -> None:
    c = analysed("attention")
    uses = tasks_of(c, device(c))
    keep(uses, key=altered(stepping="77"))
    picked = keep(uses, lambda use: use.task.space[1])
    assert in_use(tw.compile(net("attention"), threads=2)) == picked


def test_times_of_two_devices_are_not_compared() -> None:
    def row(device: str, config: int, seconds: float) -> Row:
        return Row(Key("p", device, "standard"), Candidate("gemm", 1, {"n": config}), took(seconds))

    place = fingerprint(host())
    keys = [altered(stepping=s)(Key("p", place, "standard")).device for s in ("77", "78")]
    rows = [row(keys[0], 0, 1.0), row(keys[1], 1, 3.0), row(keys[1], 2, 2.0)]
    assert tuned.of_same_model(rows, place) == rows[1:]
    assert tuned.of_same_model(rows[:2], place) in (rows[:1], rows[1:2])
    assert tuned.of_same_model([], place) == []


# --------------------------------------------------------------------------- what cannot be used


def broken(config: dict[str, Any]) -> Pick:
    return lambda use: Candidate(use.task.default.template, use.task.default.version,
                                 {**use.task.default.config, **config})  # fmt: skip


@pytest.mark.parametrize("config", [{"mr": 10**9}, {"items": "many"}, {"more": 1}])
def test_configs_that_are_none_are_skipped(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    c = analysed("attention")
    keep(tasks_of(c, device(c)), broken(config))
    with caplog.at_level(logging.WARNING, "tilewright"):
        exe = tw.compile(net("attention"), threads=2)
    assert {k.origin for k in exe.kernels} == {"default"}
    assert "no template has this config in its space" in caplog.text
    check(exe, net("attention"))


def test_reproducible_results_cannot_be_talked_out_of_it(caplog: pytest.LogCaptureFixture) -> None:
    """A record that claims to be of these numerics, but adds in another order."""
    other = next(u for u in tasks_of(analysed("residual"), device(analysed("residual")))
                 if any(c.template == "winograd" for c in u.task.space))  # fmt: skip
    foreign = next(c for c in other.task.space if c.template == "winograd")
    c = analysed("residual", "reproducible")
    before = tw.compile(net("residual"), numerics="reproducible", threads=2)
    keep(tasks_of(c, device(c)), lambda use: foreign)
    exe = tw.compile(net("residual"), numerics="reproducible", threads=2)
    assert exe.kernels == before.kernels
    assert "winograd(" in caplog.text and "is not used" in caplog.text


def test_rows_of_other_versions_of_a_template_are_not_asked_for() -> None:
    c = analysed("attention")

    def older(use: Use) -> Candidate:
        found = use.task.space[-1]
        return Candidate(found.template, found.version + 1, found.config)

    keep(tasks_of(c, device(c)), older)
    assert in_use(tw.compile(net("attention"), threads=2)) == {}


# --------------------------------------------------------------------------- with everything else


def test_saved_programs_keep_their_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = analysed("residual")
    picked = keep(tasks_of(c, device(c)))
    exe = tw.compile(net("residual"), threads=2)
    exe.save(tmp_path / "p.tw")
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    loaded = tw.load(tmp_path / "p.tw")
    assert in_use(loaded) == picked and loaded.stats.built == 0
    assert loaded.kernels == exe.kernels
    for n, y in exe.run(feeds(exe)).items():
        np.testing.assert_array_equal(loaded.run(feeds(exe))[n], y)
    loaded.save(tmp_path / "q.tw")
    assert (tmp_path / "q.tw").read_bytes() == (tmp_path / "p.tw").read_bytes()
    alone = tw.load(tmp_path / "p.tw", threads=1)
    assert in_use(alone) == {}, "they were tuned for two threads"
    check(alone, net("residual"))


@pytest.mark.parametrize("harm", [
    {"device": 3, "groups": []}, {"groups": []}, {"device": None, "groups": 7},
    lambda kept: kept | {"groups": [g | {"config": {"tw": [1]}} for g in kept["groups"]]},
    lambda kept: kept | {"groups": ["x"]},
])  # fmt: skip
def test_saved_choices_that_are_none_are_refused(harm: Any, tmp_path: Path) -> None:
    c = analysed("attention")
    keep(tasks_of(c, device(c)))
    exe = tw.compile(net("attention"), threads=2)
    exe.save(tmp_path / "p.tw")
    parts = members(tmp_path / "p.tw")
    manifest = json.loads(parts["manifest.json"])
    kept = manifest["choices"]
    manifest["choices"] = harm(kept) if callable(harm) else harm
    parts["manifest.json"] = json.dumps(manifest).encode()
    path = reseal(tmp_path / "p.tw", parts)
    if isinstance(harm, dict) and "device" in harm:
        assert in_use(tw.load(path)) == {}, "they are for some other device"
        return
    with pytest.raises(ArtifactError, match="malformed"):
        tw.load(path)


def test_memory_limits_are_met_from_tuned_kernels() -> None:
    """Their scratch is given up for the limit as that of defaults is, and the rest stays."""
    c = analysed("residual")
    keep(tasks_of(c, device(c)), winograd(4))
    exe = tw.compile(net("residual"), threads=2)
    limit = exe.plan.arena_bytes - 1
    small = tw.compile(net("residual"), threads=2, memory_limit=limit)
    assert small.plan.arena_bytes <= limit
    assert "memory limit" in {k.origin for k in small.kernels}
    check(small, net("residual"))


def test_open_shapes_are_looked_up_when_they_are_known() -> None:
    def open_net(rows: Any) -> Any:
        g = tw.Graph("open")
        w = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32) / 8
        g.output(g.relu(g.matmul(g.input("x", (rows, 64)), w)), name="y")
        return g

    onnx = pytest.importorskip("onnx")
    h, t = onnx.helper, onnx.TensorProto
    w = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    graph = h.make_graph(
        [h.make_node("MatMul", ["x", "w"], ["y"])], "open",
        [h.make_tensor_value_info("x", t.FLOAT, ["rows", 64])],
        [h.make_tensor_value_info("y", t.FLOAT, ["rows", 48])],
        [onnx.numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)])
    c = analyse(model, shapes={"x": (33, 64)}, threads=2, tune=False)
    picked = keep(tasks_of(c, device(c)))
    exe = tw.compile(model, threads=2)
    for rows, tuned_launches in ((32, 0), (33, 1)):
        x = np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float32)
        np.testing.assert_allclose(exe(x), x @ w, 1e-4, 1e-4)
        found = in_use(exe)  # type: ignore[arg-type]
        assert sum(found.values()) == tuned_launches
    assert found == picked


# --------------------------------------------------------------------------- tasks and explanations


def test_equal_groups_are_one_task() -> None:
    def twice(g: Any) -> None:
        x = g.input("x", (4, 64))
        for k in range(3):
            x = g.relu(g.matmul(x, np.float32(np.eye(64) * (k + 1))))
        g.output(x, name="y")

    g = tw.Graph("twice")
    twice(g)
    c = analyse(g, threads=2, tune=False)
    (use,) = tasks_of(c, device(c))
    assert use.launches == (0, 1, 2)
    assert use.share([1.0, 2.0, 3.0]) == 1
    assert use.task.payload == use.problem.text == use.task.key.problem
    picked = keep([use])
    assert in_use(tw.compile(g, threads=2)) == picked
    assert list(picked.values()) == [3]


@pytest.mark.parametrize("name", NETS)
def test_tasks_are_of_launches(name: str) -> None:
    c = analysed(name)
    uses = tasks_of(c, device(c))
    numbers = [k for use in uses for k in use.launches]
    assert len(set(numbers)) == len(numbers) <= len(c.launches)
    for use in uses:
        for k in use.launches:
            launch = c.launches[k]
            assert use.task.default.template == launch.kernel.template
            assert dict(use.task.default.config) == dict(launch.kernel.config)


def explained(c: Compilation) -> list[tuple[str, int]]:
    with open_records() as records:
        found = explain(c, device(c), records)
    assert all(str(e) for e in found)
    return [(e.verdict, len(e.differences)) for e in found]


def test_explanations() -> None:
    c = analysed("attention")
    assert set(explained(c)) == {("none", 0)}
    keep(tasks_of(c, device(c)))
    assert {v for v, _ in explained(analyse(net("attention"), threads=2))} == {"record"}
    assert {v for v, _ in explained(c)} == {"refused"}, "compiled without them"
    keep(tasks_of(c, device(c)), lambda use: None, slow=took(1e-9, rounds=99))
    assert {v for v, _ in explained(c)} == {"default"}, "it is the best now"


@pytest.mark.parametrize("how", ["numerics", "version"])
def test_records_that_do_not_apply_are_told_of(how: str) -> None:
    c = analysed("attention")
    if how == "numerics":
        other = analysed("attention", "reproducible")
        keep(tasks_of(other, device(other)))
        said = "numerics: standard here, reproducible there"
    else:
        with open_records(writing=True, strict=True) as records:
            for use in tasks_of(c, device(c)):
                d = use.task.default
                records.add(use.task.key, Candidate(d.template, d.version + 1, d.config), took(1.0))
        said = r"version (\d+) here, (\d+) there"
    with open_records() as records:
        found = explain(c, device(c), records)
    assert found and all(e.verdict == "none" and len(e.differences) == 1 for e in found)
    assert all(re.search(said, e.differences[0]) for e in found)


def test_failures_have_a_verdict_of_their_own() -> None:
    c = analysed("attention")
    keep(tasks_of(c, device(c)), fast=Failure("crash", "signal 11"), slow=Failure("wrong"))
    with open_records() as records:
        found = explain(c, device(c), records)
    assert {e.verdict for e in found} == {"failed"}
    assert all("every candidate on record failed" in str(e) for e in found)
    assert all("crash" in str(e) or "wrong" in str(e) for e in found)


def test_a_device_that_is_no_fingerprint_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    c = analysed("attention")
    place = json.dumps({"name": 3, "cpu": ["x", []], "features": [["avx"]]})
    rows = [Row(Key(use.task.key.problem, text, "standard"), use.task.space[-1], took(1e-3))
            for use in tasks_of(c, device(c)) for text in ("[" * 9000, place)]  # fmt: skip
    file = tmp_path / "rows"
    file.write_bytes(dump(rows))
    assert main.main(["records", "import", str(file)]) == 0
    assert in_use(tw.compile(net("attention"), threads=2)) == {}
    assert main.main(["records", "ls"]) == 0
    assert "an unknown device" in capsys.readouterr().out
    assert all(v == "none" for v, _ in explained(c))


def test_the_nearest_record_is_explained() -> None:
    c = analysed("attention")
    keep(tasks_of(c, device(c)))
    other = analysed("attention", threads=1)
    with open_records() as records:
        found = explain(other, device(other), records)
    nearest = [e for e in found if e.nearest is not None]
    assert nearest and all(e.verdict == "none" for e in found)
    for e in nearest:
        assert "threads: 1 here, 2 there" in e.differences
        assert "nearest record" in str(e)


def test_a_record_of_another_model_is_the_nearest() -> None:
    c = analysed("attention")
    keep(tasks_of(c, device(c)), key=altered(model="1"))
    with open_records() as records:
        found = explain(c, device(c), records)
    assert all(e.verdict == "none" and "device: " in e.differences[0] for e in found)


def test_a_default_on_record_is_explained() -> None:
    c = analysed("attention")
    keep(tasks_of(c, device(c)), fast=took(3e-3))
    with open_records() as records:
        found = explain(c, device(c), records)
    assert {e.verdict for e in found} == {"default"}
    assert all(e.row is not None and e.row.candidate == e.use.task.default for e in found)
