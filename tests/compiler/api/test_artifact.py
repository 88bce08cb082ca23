"""Saved programs: they come back as they were, or an ArtifactError says what is wrong."""

from __future__ import annotations

import io
import json
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api import artifact
from tilewright.compiler.errors import ArtifactError, MemoryLimitError, OptionError
from tilewright.compiler.graph.arrays import ALIGNMENT
from tilewright.compiler.graph.mapped import file_of
from tilewright.compiler.graph.text import to_text

from .archives import edited, members, reseal


def program(rows: int = 3) -> tw.Executable:
    """Two inputs, two outputs, constants of every kind, names that are no identifiers."""
    rng = np.random.default_rng(0)
    g = tw.Graph("a graph")
    x = g.input('__import__("os")', (rows, 40))
    k = g.input("k\n\"'", (rows, 40), "i64")
    scale = g.parameter("scale", rng.standard_normal(40).astype(np.float32))
    splat = g.constant(np.broadcast_to(np.float32(0.25), (rows, 40)), "splat")
    y = g.softmax(g.tanh(x * scale) + splat)
    g.output(y, "y b")
    g.output(k * np.int64(3) + g.constant(np.arange(40), "ramp"), "n")
    return tw.compile(g)


def feeds(rows: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal((rows, 40)).astype(np.float32), rng.integers(-9, 9, (rows, 40))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "program.tw"
    program().save(path)
    return path


def test_a_loaded_program_computes_the_same_bits_and_builds_nothing(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = program()(*feeds())
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    exe = tw.load(saved)
    assert exe.stats.built == 0 < exe.stats.distinct
    got = exe(*feeds())
    for a, b in zip(want, got, strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()
    assert [s.name for s in exe.inputs] == ['__import__("os")', "k\n\"'"]
    assert [s.name for s in exe.outputs] == ["y b", "n"]


def test_the_graph_survives_with_its_provenance(saved: Path) -> None:
    assert to_text(tw.load(saved).graph) == to_text(program().graph)


def test_saving_twice_or_after_loading_gives_the_same_file(saved: Path, tmp_path: Path) -> None:
    program().save(tmp_path / "again")
    tw.load(saved).save(tmp_path / "loaded")
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()
    assert (tmp_path / "loaded").read_bytes() == saved.read_bytes()


def test_code_is_saved_even_when_no_store_has_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    program().save(tmp_path / "p.tw")
    assert (tmp_path / "p.tw").read_bytes() == saved.read_bytes()


def test_on_another_cpu_the_code_is_built_anew(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = program()(*feeds())
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    monkeypatch.setenv("TILEWRIGHT_CPU", "x86-64-sse")
    exe = tw.load(saved)
    assert exe.stats.built == exe.stats.distinct > 0
    np.testing.assert_allclose(exe(*feeds())[0], want[0], rtol=1e-6)


def test_options_are_kept_and_can_be_overridden(tmp_path: Path) -> None:
    g = tw.Graph()
    g.output(g.matmul(g.relu(g.input("x", (64, 64))), g.constant(np.eye(64, dtype=np.float32))))
    tw.compile(g, threads=1, numerics="reproducible", memory_limit="1MiB").save(tmp_path / "p")
    kept = artifact.read(tmp_path / "p")
    assert (kept.threads, kept.numerics, kept.memory_limit) == (1, "reproducible", 1 << 20)
    assert tw.load(tmp_path / "p").threads == 1
    assert tw.load(tmp_path / "p", threads=2).threads == 2
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    np.testing.assert_allclose(tw.load(tmp_path / "p", threads=2)(x), np.maximum(x, 0), rtol=1e-6)
    with pytest.raises(OptionError, match="threads=0"):
        tw.load(tmp_path / "p", threads=0)


def test_the_memory_limit_holds_for_loaded_programs(tmp_path: Path) -> None:
    g = tw.Graph()
    x = g.input("x", (64, 64))
    w = g.input("w", (64, 64))
    g.output(g.matmul(g.matmul(x, w), w))
    tw.compile(g).save(tmp_path / "p")
    with pytest.raises(MemoryLimitError, match="memory limit of 8 bytes"):
        tw.load(tmp_path / "p", memory_limit=8)


def test_hashed_splats_come_back_as_splats(tmp_path: Path) -> None:
    odd_nan = np.array(0xFFC01234, np.uint32).view(np.float32)  # a NaN that text cannot carry
    g = tw.Graph()
    g.output(g.input("x", (5, 7)) + g.constant(np.broadcast_to(odd_nan, (5, 7)), "nan"))
    exe = tw.compile(g)
    exe.save(tmp_path / "p")
    graph = tw.load(tmp_path / "p").graph
    assert [n for n, b in graph.blobs.items() if b.value is not None] == ["nan"]
    value = graph.blobs["nan"].value
    assert value is not None
    assert value.strides == (0, 0)
    assert value[0, 0].tobytes() == odd_nan.tobytes()


def test_every_truncation_is_noticed(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    path = tmp_path / "short.tw"
    for size in [*range(0, 8), *range(8, len(data) - 1, len(data) // 40), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(ArtifactError, match=r"truncated|damaged"):
            tw.load(path)
    path.write_bytes(data + b"x")
    with pytest.raises(ArtifactError, match="damaged at its end"):
        tw.load(path)


def test_every_flipped_bit_is_noticed(saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    path = tmp_path / "flipped.tw"
    rng = np.random.default_rng(5)
    middle = rng.integers(32, len(data) - 128, 40).tolist()
    for at in [*range(32), *middle, *range(len(data) - 128, len(data))]:
        bit = 1 << int(rng.integers(8))
        data[at] ^= bit
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"flipped\.tw"):
            tw.load(path)
        data[at] ^= bit


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "truncated"),
        (b"\x08\x07\x12\x04onnx" * 40, "no zip archive"),
        (b"graph net(%x: f32[1]) -> (%x: f32[1]) {}", "no zip archive"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=why):
        tw.load(path)


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="files are read, not mapped")
def test_constants_stay_in_the_file_from_cache_lines_on(saved: Path) -> None:
    found = [b.value for b in artifact.read(saved).graph.blobs.values() if b.is_constant]
    stored = [x for x in found if x is not None and file_of(x) is not None]
    assert len(stored) == 2, "scale and ramp; a splat stands in the text"
    assert all(x.ctypes.data % ALIGNMENT == 0 for x in stored)


def test_another_programs_zip_is_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", x=np.ones(3))
    with pytest.raises(ArtifactError, match="not saved by Tilewright"):
        tw.load(tmp_path / "arrays.npz")


def test_a_missing_file_and_a_folder_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        tw.load(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="cannot be read"):
        tw.load(tmp_path)


def test_a_later_format_names_both_versions(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"format 9, written by Tilewright '0\.1\.0'"):
        tw.load(edited(saved, tmp_path / "p", format=9))


@pytest.mark.parametrize(
    "changes",
    [
        {"constants": None},
        {"constants": []},
        {"objects": [{"key": "k", "file": "../../etc/passwd"}]},
        {"options": {}},
        {"target": 7},
        {"constants": [{"name": "scale", "file": "graph.txt", "splat": None}]},
    ],
)
def test_wrong_manifests_are_refused(saved: Path, tmp_path: Path, changes: dict) -> None:
    with pytest.raises(ArtifactError, match="malformed"):
        tw.load(edited(saved, tmp_path / "p", **changes))


def test_missing_members_and_compression_are_refused(saved: Path, tmp_path: Path) -> None:
    parts = members(saved)
    for name in parts:
        rest = {n: d for n, d in parts.items() if n != name}
        with pytest.raises(ArtifactError, match="malformed"):
            tw.load(reseal(tmp_path / "p", rest))
    with pytest.raises(ArtifactError, match="compressed"):
        tw.load(reseal(tmp_path / "p", parts, compress=True))


def test_no_pickle_is_ever_read(saved: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "exploded"),)

    f = io.BytesIO()
    np.save(f, np.array([Bomb()], object), allow_pickle=True)
    parts = members(saved)
    file = next(n for n in parts if n.endswith(".npy"))
    with pytest.raises(ArtifactError, match="malformed"):
        tw.load(reseal(tmp_path / "p", parts | {file: f.getvalue()}))
    assert not (tmp_path / "exploded").exists()


def test_arrays_that_are_not_those_of_the_graph_are_refused(saved: Path, tmp_path: Path) -> None:
    parts = members(saved)
    for name in (n for n in parts if n.endswith(".npy")):
        f = io.BytesIO()
        np.save(f, np.arange(40, dtype=np.float32) + 100)
        if len(parts[name]) < 250:
            continue  # a splat stands in the text
        with pytest.raises(ArtifactError, match=r"hash|array"):
            tw.load(reseal(tmp_path / "p", parts | {name: f.getvalue()}))


def test_a_foreign_object_under_another_key_is_not_used(saved: Path, tmp_path: Path) -> None:
    manifest = json.loads(members(saved)["manifest.json"])
    objects = [o | {"key": "0" * 64} for o in manifest["objects"]]
    exe = tw.load(edited(saved, tmp_path / "p", objects=objects))
    want = program()(*feeds())
    assert exe(*feeds())[0].tobytes() == want[0].tobytes()


def test_failures_to_write_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot save to .*No such file"):
        program().save(tmp_path / "no" / "p.tw")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="cannot save"):
        program().save(tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """`-o /dev/null` of somebody who may write to /dev would take that device from everybody."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ArtifactError, match=r"cannot save to .*device or a pipe"):
        program().save(pipe)
    assert pipe.is_fifo() and [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_saving_replaces_an_older_file(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "p.tw").write_bytes(b"old")
    program().save(tmp_path / "p.tw")
    assert (tmp_path / "p.tw").read_bytes() == saved.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["p.tw"]
