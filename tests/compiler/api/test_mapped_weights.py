"""Saved programs read weights where they lie in the file, if this code would pack them alike."""

from __future__ import annotations

import io
import json
import logging
import mmap
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api import artifact
from tilewright.compiler.graph.arrays import ALIGNMENT
from tilewright.compiler.graph.mapped import file_of
from tilewright.compiler.kernels.ir import Prepared
from tilewright.compiler.runtime import constants

from .archives import members, signed

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_DONTNEED"), reason="files are read, not mapped"
)
rng = np.random.default_rng(5)
X = rng.standard_normal((1, 24, 9, 9)).astype(np.float32)


def program() -> tw.Executable:
    """Weights of several kinds that are packed, one that is read as it is, one that is both."""
    g = tw.Graph("net")

    def normal(*shape: int) -> np.ndarray:
        return rng_of(shape).standard_normal(shape).astype(np.float32)

    h = g.input("x", X.shape)
    h = g.relu(g.conv(h, g.parameter("w3", normal(40, 24, 3, 3)), g.constant(normal(40)), pads=1))
    h = g.conv(h, g.parameter("deep", normal(40, 1, 3, 3)), group=40, pads=1)
    h = g.reshape(g.global_average_pool(h), shape=(1, 40))
    square = g.parameter("square", normal(40, 40))
    h = g.softmax(g.matmul(h, square))
    g.output(g.matmul(h, g.parameter("last", normal(40, 10))) * g.constant(normal(10)), name="y")
    g.output(g.reduce_sum(square, axes=(1,), keepdims=0) + h, name="z")
    return tw.compile(g)


def rng_of(shape: tuple[int, ...]) -> np.random.Generator:
    return np.random.default_rng(shape)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "program.tw"
    program().save(path)
    return path


@pytest.fixture(scope="module")
def want() -> list[np.ndarray]:
    return list(program()(X))


def same(exe: tw.Executable, want: list[np.ndarray]) -> None:
    for a, b in zip(exe(X), want, strict=True):
        np.testing.assert_array_equal(a, b)


def packed_of(exe: tw.Executable) -> list[np.ndarray]:
    return [a for what, a in exe._program.constants.items() if isinstance(what, Prepared)]


def test_nothing_is_packed_or_copied(
    saved: Path, want: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    make = constants._made

    def seen(graph: object, launches: object, distinct: list[object], threads: int) -> object:
        made.extend(distinct)
        return make(graph, launches, distinct, threads)  # type: ignore[arg-type]

    monkeypatch.setattr(constants, "_made", seen)
    exe = tw.load(saved)
    assert not made
    assert len(packed_of(exe)) >= 4
    for a in exe._program.constants.values():
        assert file_of(a) is not None and not a.flags.writeable
        assert a.ctypes.data % ALIGNMENT == 0
    same(exe, want)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux")
def test_the_files_pages_are_nobodys_own(saved: Path, want: list[np.ndarray]) -> None:
    exe = tw.load(saved)
    same(exe, want)
    mappings = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    mine = [m for m in mappings if str(saved) in m.partition("\n")[0]]
    assert mine, "the file is mapped"
    assert all(re.search(r"(?m)^Private_Dirty: +0 kB", m) for m in mine)
    assert all("r--s" in m.splitlines()[0] or "r--p" in m.splitlines()[0] for m in mine)


def test_without_packed_weights_the_file_is_smaller(
    saved: Path, tmp_path: Path, want: list[np.ndarray]
) -> None:
    program().save(tmp_path / "small.tw", packed=False)
    weights = sum(a.nbytes for a in packed_of(tw.load(saved)))
    assert saved.stat().st_size - (tmp_path / "small.tw").stat().st_size >= weights
    exe = tw.load(tmp_path / "small.tw")
    assert all(file_of(a) is None for a in packed_of(exe))
    same(exe, want)
    exe.save(tmp_path / "again.tw")
    assert (tmp_path / "again.tw").read_bytes() == saved.read_bytes()


def manifest(path: Path) -> dict:
    return json.loads(members(path)["manifest.json"])


def edited(saved: Path, path: Path, **changes: object) -> Path:
    text = json.dumps(manifest(saved) | changes).encode()
    return sealed(path, members(saved) | {"manifest.json": text})


def sealed(path: Path, parts: dict[str, bytes]) -> Path:
    """A valid archive of these members, arrays on cache lines."""
    with zipfile.ZipFile(path, "w") as z:
        for name, data in parts.items():
            if name.endswith(".npy"):
                artifact._add_array(z, name, np.load(io.BytesIO(data)))
            else:
                artifact._add(z, name, data)
        z.comment = artifact._COMMENT + b"0" * 64
    return signed(path)


def test_weights_that_other_code_packed_are_packed_again(
    saved: Path, tmp_path: Path, want: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    path = edited(saved, tmp_path / "p.tw", packing="0" * 16)
    parts = members(path)
    for name in (n for n in parts if n.startswith("packed/")):
        parts[name] = parts[name][:-64] + b"\xff" * 64  # another order
    with caplog.at_level(logging.INFO, "tilewright"):
        exe = tw.load(sealed(path, parts))
    assert all(file_of(a) is None for a in packed_of(exe))
    assert re.search(r"p\.tw' was packed by other code", caplog.text)
    assert re.search(r"(\d+) of \1 weights are not in the file .* packed now", caplog.text)
    same(exe, want)


def test_weights_for_another_vector_width_are_packed_again(
    saved: Path, want: list[np.ndarray], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("TILEWRIGHT_CPU", "x86-64-sse")
    with caplog.at_level(logging.INFO, "tilewright"):
        exe = tw.load(saved)
    assert "weights are not in the file" in caplog.text
    assert any(file_of(a) is None for a in packed_of(exe))
    for a, b in zip(exe(X), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_same_members_load_as_before(saved: Path, tmp_path: Path) -> None:
    exe = tw.load(sealed(tmp_path / "p.tw", members(saved)))
    assert all(file_of(a) is not None for a in packed_of(exe))


@pytest.mark.parametrize("change", ["shape", "dtype"])
def test_weights_that_do_not_fit_their_kernel_are_packed_again(
    saved: Path, tmp_path: Path, want: list[np.ndarray], change: str
) -> None:
    parts = members(saved)
    for name in (n for n in parts if n.startswith("packed/")):
        a = np.load(io.BytesIO(parts[name]))
        np.save(tmp_path / "a.npy", a.ravel()[1:] if change == "shape" else a.astype("f8"))
        parts[name] = (tmp_path / "a.npy").read_bytes()
    exe = tw.load(sealed(tmp_path / "p.tw", parts))
    assert all(file_of(a) is None for a in packed_of(exe))
    same(exe, want)


@pytest.mark.parametrize(
    "packed", [None, 3, [{}], [{"blobs": [], "recipe": "r", "file": "packed/99999.npy"}],
               [{"blobs": 7, "recipe": "r", "file": "packed/00000.npy"}]],
)  # fmt: skip
def test_wrong_lists_of_weights_are_refused(saved: Path, tmp_path: Path, packed: object) -> None:
    with pytest.raises(tw.TilewrightError, match="malformed"):
        tw.load(edited(saved, tmp_path / "p.tw", packed=packed))


def test_originals_are_still_there(saved: Path) -> None:
    exe = tw.load(saved)
    before = {n: b.value for n, b in program().graph.blobs.items() if b.is_constant}
    for name, value in before.items():
        np.testing.assert_array_equal(exe.graph.blobs[name].value, value)


def test_the_fingerprint_follows_the_packing_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = constants.packing_fingerprint()
    folder = Path(constants.ir.__file__).parent
    for file in folder.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(constants.ir, "__file__", str(tmp_path / "ir.py"))
    constants.packing_fingerprint.cache_clear()
    assert constants.packing_fingerprint() == before, "where it lies does not matter"
    with (tmp_path / "winograd.py").open("a") as f:
        f.write("# a change\n")
    constants.packing_fingerprint.cache_clear()
    assert constants.packing_fingerprint() != before
    monkeypatch.undo()
    constants.packing_fingerprint.cache_clear()
    assert constants.packing_fingerprint() == before
    assert artifact.packing_fingerprint() == before
