"""Whatever happens to the cache directory, every run succeeds with the right result."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler import store as store_module
from tilewright.compiler.api.executable import Executable

from .models import smallest_net

X = np.random.default_rng(1).uniform(-1, 1, (4, 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_warned", set())


@pytest.fixture(scope="module")
def data() -> bytes:
    return smallest_net().SerializeToString()


@pytest.fixture(scope="module")
def right(data: bytes) -> np.ndarray:
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TILEWRIGHT_CACHE", "off")
        y = tw.compile(data)(X)
    assert y.sum() == pytest.approx(4, rel=1e-5) and y.max() - y.min() > 0.01
    return y


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(path))
    return path


def run(data: bytes, right: np.ndarray) -> Executable:
    exe = tw.compile(data)
    assert isinstance(exe, Executable)
    np.testing.assert_array_equal(exe(X), right)
    return exe


def files_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_the_second_compilation_builds_nothing(data: bytes, right: np.ndarray, cache: Path) -> None:
    first, second = run(data, right), run(data, right)
    assert first.stats.built == first.stats.distinct > 0 and second.stats.built == 0
    shutil.rmtree(cache)
    assert run(data, right).stats.built > 0


# --------------------------------------------------------------------------- damage


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[min(int(len(content) * at), len(content) - 1)] ^= 0x40
    path.write_bytes(content)


def by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def by_link(path: Path) -> None:
    target = path.with_name(f"elsewhere_{path.name}")
    shutil.move(path, target)
    path.symlink_to(target)


def by_dead_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def by_another(path: Path) -> None:
    """A whole entry, but of another key."""
    others = [p for p in path.parent.iterdir() if p != path]
    if others:
        shutil.copy(others[0], path)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "start": lambda p: flip(p, 0),
    "header": lambda p: flip(p, 0.02),
    "middle": lambda p: flip(p, 0.5),
    "end": lambda p: flip(p, 1),
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"more"),
    "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
    "gone": lambda p: p.unlink(),
    "directory": by_directory,
    "link": by_link,
    "dead link": by_dead_link,
    "pipe": by_pipe,
    "another": by_another,
    "unreadable": lambda p: p.chmod(0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(data: bytes, right: np.ndarray, cache: Path, damage: str) -> None:
    """Every file is damaged in turn, then all of them at once."""
    run(data, right)
    files = files_below(cache)
    assert len(files) >= 2
    for name in files:
        if name.is_file():
            DAMAGES[damage](name)
        run(data, right)
    for name in files_below(cache):
        DAMAGES[damage](name)
    run(data, right)
    if damage != "unreadable" or os.geteuid() == 0:
        assert run(data, right).stats.built == 0, "what was built again should have been stored"


def test_a_loop_of_random_damage(data: bytes, right: np.ndarray, cache: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        run(data, right)
        files = files_below(cache)
        for k in rng.integers(0, len(files), 3):
            if files[k].is_file() and files[k].stat().st_size:
                flip(files[k], float(rng.random()))


# --------------------------------------------------------------------------- places


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "fixed"
    folder.mkdir()
    yield folder
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o700)


CHILD = textwrap.dedent("""
    import sys
    import numpy as np
    import tilewright as tw
    with open(sys.argv[1], "rb") as f:
        exe = tw.compile(f.read())
    x = np.load(sys.argv[2])
    np.save(sys.argv[3], exe(x))
    print("built", exe.stats.built)
""")


class Job:
    """A compilation in a process of its own."""

    def __init__(self, folder: Path, data: bytes) -> None:
        self.folder = folder
        (folder / "net.onnx").write_bytes(data)
        np.save(folder / "x.npy", X)
        self.count = 0

    def start(
        self, before: str = "", **environment: str | None
    ) -> tuple[subprocess.Popen[str], Path]:
        """before: code that the process runs first. environment: None removes a variable."""
        self.count += 1
        result = self.folder / f"y{self.count}.npy"
        env = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
        env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        process = subprocess.Popen(
            [sys.executable, "-c", before + CHILD, str(self.folder / "net.onnx"),
             str(self.folder / "x.npy"), str(result)],
            env=env, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return process, result

    def finish(self, started: tuple[subprocess.Popen[str], Path], right: np.ndarray) -> str:
        process, result = started
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        np.testing.assert_array_equal(np.load(result), right)
        return out + err

    def run(self, right: np.ndarray, before: str = "", **environment: str | None) -> str:
        return self.finish(self.start(before, **environment), right)


@pytest.fixture
def job(tmp_path: Path, data: bytes) -> Job:
    folder = tmp_path / "job"
    folder.mkdir()
    return Job(folder, data)


def as_nobody() -> str:
    """Code that gives up root's rights, to which no directory is read-only."""
    return "import os\nif os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"


def test_a_read_only_directory(
    data: bytes, right: np.ndarray, unwritable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty, then full. Root may write anywhere, so the system is asked to refuse."""
    real = os.open

    def refusing(path: object, flags: int, *more: object, **named: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(unwritable) in str(path):
            raise OSError(30, "Read-only file system", str(path))
        return real(path, flags, *more, **named)  # type: ignore[arg-type]

    cache = unwritable / "cache"
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(cache))
    with monkeypatch.context() as m:
        m.setattr(os, "open", refusing)
        assert run(data, right).stats.built > 0
        assert not files_below(unwritable)
    run(data, right)
    for folder in (cache / "staging", cache / "entries", cache):
        folder.chmod(0o500)
    with monkeypatch.context() as m:
        m.setattr(os, "open", refusing)
        assert run(data, right).stats.built == 0
        for path in files_below(cache):
            flip(path, 0.5)
        run(data, right)


def test_directories_of_others(right: np.ndarray, job: Job, tmp_path: Path) -> None:
    """Of root, seen by another user; and only root can try that."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    readable = Path(sys.prefix).stat().st_mode & 0o005
    if not readable or not os.access(sys.executable, os.X_OK):
        pytest.skip("another user cannot run this Python")
    probe = as_nobody() + "import tilewright\n"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    if subprocess.run(
        [sys.executable, "-c", probe], env=env, cwd="/", capture_output=True
    ).returncode:
        pytest.skip("another user cannot import this package")
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == 0 and path.name and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o005)
    job.folder.chmod(0o777)
    cache = tmp_path / "roots"
    cache.mkdir(mode=0o755)
    job.run(right, as_nobody(), TILEWRIGHT_CACHE=str(cache))
    assert not files_below(cache)


@pytest.mark.parametrize("where", ["a file", "below a file", "a link", "a device", "no parent"])
def test_places_where_nothing_can_be_kept(
    where: str, data: bytes, right: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    file = tmp_path / "file"
    file.write_text("mine")
    link = tmp_path / "link"
    (tmp_path / "other").mkdir()
    link.symlink_to(tmp_path / "other")
    place = {
        "a file": file,
        "below a file": file / "cache",
        "a link": link,
        "a device": Path("/dev/null"),
        "no parent": Path("/proc/nowhere/cache"),
    }[where]
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(place))
    with caplog.at_level(logging.WARNING, "tilewright"):
        run(data, right)
        run(data, right)
    assert file.read_text() == "mine" and not files_below(tmp_path / "other")
    assert len(caplog.records) == 1, "one warning, not one per kernel"
    assert str(place) in caplog.text


@pytest.mark.parametrize("value", ["off", "", "OFF"])
def test_switched_off(
    value: str, data: bytes, right: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILEWRIGHT_CACHE", value)
    assert run(data, right).stats.built > 0 and run(data, right).stats.built > 0
    assert not files_below(tmp_path)


def test_no_home(right: np.ndarray, job: Job) -> None:
    none = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "TILEWRIGHT_CACHE", "USER", "LOGNAME"))
    fake = "import os, pathlib\ndef lost(*_):\n    raise RuntimeError('no home')\n"
    fake += "pathlib.Path.home = lost\n"
    job.run(right, fake, **none)
    empty = job.folder / "home"
    empty.mkdir()
    job.run(right, **{**none, "HOME": str(empty)})
    assert files_below(empty / ".cache" / "tilewright")
    job.run(right, **{**none, "HOME": "/nowhere/at/all"})


# --------------------------------------------------------------------------- a full disk


@pytest.mark.parametrize("limit", [0, 1500])
def test_a_full_disk(right: np.ndarray, job: Job, cache: Path, limit: int) -> None:
    """No file of the process may pass `limit` bytes while it compiles."""
    pytest.importorskip("resource")
    before = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import numpy as np
real = np.save
def save(*a):
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    real(*a)
np.save = save
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
"""
    job.run(right, before, TILEWRIGHT_CACHE=str(cache), PYTHONDONTWRITEBYTECODE="1")
    left = [p for p in files_below(cache) if p.parent.name != "entries"]
    assert not left, "nothing half-written stays behind"
    job.run(right, TILEWRIGHT_CACHE=str(cache))
    assert "built 0" in job.run(right, TILEWRIGHT_CACHE=str(cache))


def test_a_tiny_file_system(
    data: bytes, right: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really full: a file system in memory, of a few pages. Only root can mount one."""
    place = tmp_path / "tiny"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        monkeypatch.setenv("TILEWRIGHT_CACHE", str(place / "cache"))
        for _ in range(3):
            run(data, right)
        assert not files_below(place / "cache" / "staging")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


# --------------------------------------------------------------------------- many processes


def test_eight_processes_at_once(right: np.ndarray, job: Job, cache: Path) -> None:
    started = [job.start(TILEWRIGHT_CACHE=str(cache)) for _ in range(8)]
    for s in started:
        job.finish(s, right)
    assert not [p for p in files_below(cache) if p.parent.name != "entries"]
    assert "built 0" in job.run(right, TILEWRIGHT_CACHE=str(cache))


def test_processes_that_fight(right: np.ndarray, job: Job, cache: Path) -> None:
    """Two compile while a third one damages and removes what they store."""
    started = [job.start(TILEWRIGHT_CACHE=str(cache)) for _ in range(2)]
    while any(p.poll() is None for p, _ in started):
        for path in files_below(cache):
            try:
                if path.stat().st_ino % 2:
                    path.unlink()
                else:
                    path.write_bytes(b"noise")
            except OSError:
                continue
        time.sleep(0.005)
    for s in started:
        job.finish(s, right)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill")
def test_killed_in_the_middle(right: np.ndarray, job: Job, cache: Path) -> None:
    """Kill at moments all over the compilation; each time the next run is right."""
    start = time.monotonic()
    job.run(right, TILEWRIGHT_CACHE=str(cache))
    whole = time.monotonic() - start
    for k in range(4):
        shutil.rmtree(cache, ignore_errors=True)
        process, _ = job.start(TILEWRIGHT_CACHE=str(cache))
        deadline = time.monotonic() + whole
        if k % 2:  # as soon as something is being written
            while not files_below(cache) and time.monotonic() < deadline:
                time.sleep(0.0005)
        else:
            time.sleep(whole * (0.5 + k / 6))
        process.kill()
        process.communicate()
        if k % 2:
            job.run(right, TILEWRIGHT_CACHE=str(cache))
        else:
            with pytest.MonkeyPatch.context() as m:
                m.setenv("TILEWRIGHT_CACHE", str(cache))
                run(job.folder.joinpath("net.onnx").read_bytes(), right)


def test_a_kill_between_writing_and_publishing(
    data: bytes, right: np.ndarray, job: Job, cache: Path
) -> None:
    """The worst moment: the file is whole but has no name yet."""
    before = "import os, signal\nos.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
    process, _ = job.start(before, TILEWRIGHT_CACHE=str(cache))
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    left = files_below(cache / "staging")
    assert left and not files_below(cache / "entries")
    run(data, right)
    assert files_below(cache / "staging") == left, "a young file may be someone's work"
    old = time.time() - 7200
    for file in left:  # one of each thread that was writing
        os.utime(file, (old, old))
    shutil.rmtree(cache / "entries")
    run(data, right)
    assert not files_below(cache / "staging")
