"""The store returns what was put, notices every kind of damage, and never fails its caller."""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.compiler import store as module
from tilewright.compiler.store import Store, cache_directory

KEY = [("source", "define void @f()"), ("cpu", "haswell"), ("opt", 2)]
PAYLOAD = bytes(range(256)) * 3


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_warned", set())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def only_entry(root: Path) -> Path:
    (path,) = (root / "entries").iterdir()
    return path


def never() -> bytes:
    raise AssertionError("built although it was stored")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_what_was_put_comes_back(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Store(root).get(KEY) is None
    assert not root.exists(), "looking must not write"
    assert Store(root).put(KEY, PAYLOAD)
    assert Store(root).get(KEY) == PAYLOAD
    assert Store(root).get_or_build(KEY, never) == PAYLOAD
    assert Store(root).get_or_build([("other", 1)], lambda: b"") == b""
    assert Store(root).get([("other", 1)]) == b""
    assert Store(root).put(KEY, b"newer") and Store(root).get(KEY) == b"newer"
    assert not list((root / "staging").iterdir())
    assert not warnings(caplog)


@given(
    st.lists(
        st.tuples(st.text(), st.one_of(st.text(), st.integers())),
        unique_by=lambda field: field[0],
        max_size=4,
    ),
    st.binary(max_size=50),
)
def test_any_key_holds_any_bytes(key: list[tuple[str, str | int]], payload: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(os, "fsync"):  # it is slow
        store = Store(Path(folder) / "cache")
        assert store.put(key, payload)
        assert store.get(key) == payload
        assert store.entries()[0].key == tuple(key)
        assert store.get([*key, ("one more field", "")]) is None


def test_keys_differ_by_name_value_type_and_order(root: Path) -> None:
    keys = [
        [("a", "1"), ("b", "2")],
        [("a", 1), ("b", "2")],
        [("b", "2"), ("a", "1")],
        [("a", "1b"), ("", "2")],
        [("a", "1")],
        [("a", '1"],["b","2')],
        [],
    ]
    store = Store(root)
    for at, key in enumerate(keys):
        assert store.put(key, bytes([at]))
    for at, key in enumerate(keys):
        assert store.get(key) == bytes([at])
    assert len(store.entries()) == len(keys)


@pytest.mark.parametrize("key", [[("a", 1.5)], [("a", None)], [("a", b"x")], [(1, "x")]])
def test_a_key_of_another_type_is_a_programming_error(root: Path, key: list) -> None:
    with pytest.raises(TypeError, match="store key field"):
        Store(root).get(key)


def test_a_repeated_field_is_a_programming_error(root: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        Store(root).put([("a", 1), ("a", 2)], b"")


def test_directories_and_entries_are_private(root: Path) -> None:
    previous = os.umask(0)
    try:
        Store(root).put(KEY, PAYLOAD)
    finally:
        os.umask(previous)
    for path in (root, root / "entries", root / "staging"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(only_entry(root).stat().st_mode) == 0o600


def test_others_lose_their_write_access(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    assert Store(root).put(KEY, PAYLOAD)
    assert stat.S_IMODE(root.stat().st_mode) == 0o755


# Damage to the one entry: what was damaged, how.


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "half": lambda data: data[: len(data) // 2],
    "last byte missing": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"hello",
    "doubled": lambda data: data + data,
    "huge lengths": lambda data: data[:51] + b"\xff" * 16 + data[67:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed_quarantined_and_repaired(
    root: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(root)
    store.put(KEY, PAYLOAD)
    path = only_entry(root)
    path.write_bytes(damage(path.read_bytes()))
    store.entries()
    assert store.get_or_build(KEY, lambda: b"rebuilt") == b"rebuilt"
    assert store.get_or_build(KEY, never) == b"rebuilt"
    assert len(list((root / "quarantine").iterdir())) == 1
    assert len(warnings(caplog)) == 1 and "damaged cache entry" in warnings(caplog)[0]


def test_a_changed_byte_anywhere_is_noticed(root: Path) -> None:
    store = Store(root)
    store.put(KEY, PAYLOAD[:40])
    path = only_entry(root)
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(flip(at)(good))
        assert store.get(KEY) is None, f"byte {at} of {len(good)}"
        assert not path.exists()
    path.write_bytes(good)
    assert store.get(KEY) == PAYLOAD[:40]


def test_quarantine_is_bounded_and_one_warning_is_enough(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(root)
    for at in range(20):
        store.put([("at", at)], PAYLOAD)
    for path in (root / "entries").iterdir():
        path.write_bytes(b"junk")
    for at in range(20):
        assert store.get([("at", at)]) is None
    assert len(list((root / "quarantine").iterdir())) == 16
    assert len(warnings(caplog)) == 1


def test_an_entry_of_another_key_is_not_served(root: Path) -> None:
    store = Store(root)
    store.put([("secret", 1)], b"other")
    other = only_entry(root)
    store.put(KEY, PAYLOAD)
    (mine,) = set((root / "entries").iterdir()) - {other}
    mine.write_bytes(other.read_bytes())  # whole and well formed, but under the wrong name
    assert store.get(KEY) is None
    assert store.get([("secret", 1)]) == b"other"


@pytest.mark.parametrize("kind", ["folder", "full folder", "link", "dangling link", "pipe"])
def test_entries_that_are_no_files(root: Path, tmp_path: Path, kind: str) -> None:
    store = Store(root)
    store.put(KEY, PAYLOAD)
    path = only_entry(root)
    good = path.read_bytes()
    path.unlink()
    elsewhere = tmp_path / "elsewhere"
    if kind.endswith("folder"):
        path.mkdir()
        if kind.startswith("full"):
            (path / "x").write_text("x")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        if kind == "link":
            elsewhere.write_bytes(good)  # even to a good entry: whoever made it can change it
        path.symlink_to(elsewhere)
    store.entries()
    assert store.get_or_build(KEY, lambda: b"rebuilt") == b"rebuilt"
    assert store.get_or_build(KEY, never) == b"rebuilt"
    assert len(list((root / "quarantine").iterdir())) == 1
    assert kind != "link" or elsewhere.read_bytes() == good
    store.clear()
    assert store.size == 0


@pytest.mark.parametrize("name", ["", "entries", "staging", "quarantine"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_folders_that_are_no_folders_of_ours(
    root: Path, tmp_path: Path, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    path = root / name if name else root
    path.parent.mkdir(exist_ok=True)
    if kind == "link":
        path.symlink_to(target, target_is_directory=True)
    else:
        path.write_text("in the way")
    store = Store(root)
    for at in range(3):
        assert store.get_or_build([("at", at)], lambda: PAYLOAD) == PAYLOAD
    if name != "quarantine":
        (warning,) = warnings(caplog)
        reason = "is a symbolic link" if kind == "link" else "is not a directory"
        assert warning == f"not caching in {root}: {path} {reason}"
        assert store.get(KEY) is None and not store.put(KEY, PAYLOAD)
    store.entries(), store.clear(), store.size, store.explain(KEY)
    assert not list(target.iterdir())


def test_folders_of_others_are_not_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(root)
    store.put(KEY, PAYLOAD)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert store.get(KEY) is None and not store.put(KEY, PAYLOAD)
    assert warnings(caplog) == [f"not caching in {root}: {root} belongs to user {mine}"]
    monkeypatch.undo()
    assert store.get(KEY) == PAYLOAD


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("kind", ["nothing", "file", "link", "broken link", "folder", "pipe"])
def test_files_of_others_beside_the_entries(
    root: Path, tmp_path: Path, kind: str, create: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = root / "others"
    assert Store(root).beside("others") == path and not root.exists(), "looking must not write"
    Store(root).put(KEY, PAYLOAD)
    target = tmp_path / "target"
    if kind == "file":
        path.write_text("rows")
    elif kind in ("link", "broken link"):
        path.symlink_to(target)
        if kind == "link":
            target.write_text("rows")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    found = Store(root).beside("others", create=create)
    if kind in ("nothing", "file"):
        assert found == path and not warnings(caplog)
        assert path.exists() is (kind == "file"), "the file is for others to make"
    else:
        assert found is None
        assert warnings(caplog) == [f"not caching in {root}: {path} is not a regular file"]


def test_no_file_of_others_in_a_directory_of_others(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Store(root).beside("others", create=True) == root / "others"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert Store(root).beside("others") is None
    monkeypatch.undo()
    (tmp_path / "link").symlink_to(root)
    for create in (False, True):
        assert Store(tmp_path / "link").beside("others", create=create) is None
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    assert Store().beside("others", create=True) is None


# Faults of the disk.


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "mkdir", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_no_fault_reaches_the_caller(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
    number: int,
) -> None:
    def fail(*args: object, **kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    store = Store(root)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        for at in range(3):
            assert store.get_or_build([("at", at)], lambda: PAYLOAD) == PAYLOAD
        assert not store.put(KEY, PAYLOAD)
    assert len(warnings(caplog)) == 1, warnings(caplog)
    assert not any(path.is_file() for path in root.rglob("*")), "nothing half-written stays"
    assert store.put(KEY, PAYLOAD) and store.get(KEY) == PAYLOAD


def test_a_disk_that_fills_in_the_middle(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.write, [100]

    def write(descriptor: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "full")
        written = real(descriptor, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)
    store = Store(root)
    assert not store.put(KEY, PAYLOAD)
    assert store.get(KEY) is None and store.size == 0
    room[0] = 10_000  # short writes alone are no fault
    monkeypatch.setattr(os, "write", lambda d, data: write(d, data[:7]))
    assert store.put(KEY, PAYLOAD) and store.get(KEY) == PAYLOAD


def child(script: str, root: Path) -> subprocess.Popen[str]:
    """A process of its own, with a store in `root`; its standard input is a pipe."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    preamble = """
import os, signal, sys
from pathlib import Path
from tilewright.compiler.store import Store
store = Store(Path(sys.argv[1]))
"""
    return subprocess.Popen(
        [sys.executable, "-c", preamble + textwrap.dedent(script), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no file permissions here")
def test_a_read_only_directory(root: Path) -> None:
    script = """
        import shutil, tempfile
        folder = tempfile.mkdtemp()
        os.chmod(folder, 0o777)
        if os.geteuid() == 0:
            os.seteuid(65534)                # permissions do not bind root
        try:
            cache = Path(folder) / "cache"
            store = Store(cache)
            assert store.put([("old", 1)], b"old")
            for path in (cache, cache / "entries", cache / "staging"):
                path.chmod(0o500)
            assert store.get_or_build([("old", 1)], lambda: b"new") == b"old"
            assert store.get_or_build([("new", 1)], lambda: b"built") == b"built"
            assert store.get([("new", 1)]) is None
            cache.chmod(0)
            assert store.get_or_build([("old", 1)], lambda: b"built") == b"built"
            cache.chmod(0o700)
        finally:
            os.seteuid(os.getuid())
            shutil.rmtree(folder)
        print("fine")
    """
    code, out, err = finish(child(script, root))
    assert (code, out) == (0, "fine\n"), err
    assert err.count("cannot write to the cache") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes")
def test_a_file_size_limit(root: Path) -> None:
    script = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        assert store.get_or_build([("big", 1)], lambda: bytes(5000)) == bytes(5000)
        assert store.get_or_build([("small", 1)], lambda: bytes(50)) == bytes(50)
        print(len(store.entries()), len(list((store.directory / "staging").iterdir())))
    """
    code, out, err = finish(child(script, root))
    assert (code, out) == (0, "1 0\n"), err
    assert err.count("cannot write to the cache") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="kills itself by SIGKILL")
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_writer_killed_in_the_middle_leaves_no_entry(
    root: Path, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    script = f"""
        os.{moment} = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        store.put([("at", 1)], bytes(1000))
    """
    code, _, err = finish(child(script, root))
    assert code == -signal.SIGKILL, err
    store = Store(root)
    assert store.get([("at", 1)]) is None and not store.entries()
    (left,) = (root / "staging").iterdir()
    assert store.put([("at", 2)], b"x") and left.exists(), "it may belong to a living process"
    os.utime(left, (1, 1))
    assert store.put([("at", 3)], b"x") and not left.exists()
    assert store.get_or_build([("at", 1)], lambda: b"again") == b"again"
    assert not warnings(caplog)


def test_eight_processes_at_once(root: Path) -> None:
    script = """
        sys.stdin.read()                     # all start together
        built = 0
        def build(at):
            global built
            built += 1
            return bytes([at]) * (at * 1000)
        for round in range(5):
            for at in range(12):
                got = store.get_or_build([("at", at)], lambda: build(at))
                assert got == bytes([at]) * (at * 1000)
        print(built)
    """
    processes = [child(script, root) for _ in range(8)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    built = []
    for process in processes:
        code, out, err = finish(process)
        assert code == 0 and not err, err
        built.append(int(out))
    assert all(count <= 12 for count in built) and sum(built) >= 12
    assert len(Store(root).entries()) == 12
    assert not list((root / "staging").iterdir()) and not (root / "quarantine").exists()


def test_errors_of_the_builder_are_the_callers(root: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Store(root).get_or_build(KEY, lambda: bytes(1 // 0))
    assert Store(root).get(KEY) is None


# Looking into it.


def test_listing_size_and_clearing(root: Path) -> None:
    store = Store(root)
    assert store.entries() == () and store.size == 0 and store.clear() == 0
    store.put(KEY, PAYLOAD)
    store.put([("a", 1)], b"")
    (root / "entries" / ("0" * 64)).write_bytes(b"junk")
    (root / "staging" / "left").write_bytes(b"12345")
    entries = store.entries()
    assert {entry.key for entry in entries} == {tuple(KEY), (("a", 1),)}
    assert store.size == sum(entry.size for entry in entries) + 4 + 5
    assert store.clear() == 3
    assert store.entries() == () and store.size == 0
    assert store.put(KEY, PAYLOAD)


def test_explain_names_the_field_that_made_a_miss(root: Path) -> None:
    store = Store(root)
    assert str(store.explain(KEY)) == "miss: nothing is stored"
    store.put([("source", "long\n" * 50), ("cpu", "haswell"), ("opt", 2)], b"")
    store.put([("source", "define void @f()"), ("cpu", "znver4"), ("opt", 2)], b"")
    store.put([("source", "g"), ("cpu", "znver4"), ("opt", 3), ("extra", "x")], b"")
    assert not store.explain(KEY).hit
    near = store.explain([("source", "define void @f()"), ("cpu", "znver5"), ("opt", 2)])
    assert [(d.field, d.wanted, d.stored) for d in near.differences] == [
        ("cpu", "znver5", "znver4")
    ]
    assert "cpu: wanted 'znver5', stored 'znver4'" in str(near)
    lacking = store.explain([("source", "define void @f()"), ("cpu", "znver4")])
    assert [(d.field, d.wanted, d.stored) for d in lacking.differences] == [("opt", None, 2)]
    long = store.explain([("source", "long\n" * 51), ("cpu", "haswell"), ("opt", 2)])
    assert "(255 characters, sha256 " in str(long) and "(250 characters" in str(long)
    swapped = store.explain([("cpu", "znver4"), ("source", "define void @f()"), ("opt", 2)])
    assert not swapped.hit and "order of the fields" in str(swapped)
    store.put(KEY, b"")
    assert store.explain(KEY).hit and str(store.explain(KEY)).startswith("hit: ")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine" == Store().directory
    monkeypatch.setenv("TILEWRIGHT_CACHE", "relative")
    assert cache_directory() == Path.cwd() / "relative"
    for off in ("", "off", "OFF"):
        monkeypatch.setenv("TILEWRIGHT_CACHE", off)
        store = Store()
        assert cache_directory() is None and store.directory is None
        assert store.get_or_build(KEY, lambda: b"built") == b"built"
        assert store.get(KEY) is None and store.entries() == () and store.size == 0
        assert store.clear() == 0 and not store.explain(KEY).hit
    monkeypatch.delenv("TILEWRIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "tilewright"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "tilewright"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == tmp_path / "home" / ".cache" / "tilewright"
    store = Store()
    assert store.put(KEY, PAYLOAD) and store.get(KEY) == PAYLOAD
