"""Records keep what was acknowledged, whoever is killed, whatever happens to the file."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.autotune import records as module
from tilewright.autotune.errors import TunerError
from tilewright.autotune.outcome import Failure, Measurement
from tilewright.autotune.records import Records
from tilewright.autotune.row import Row, combined

from .rows import KEY, candidate, key, odd_rows, row, rows, time


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_warned", set())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def fill(path: Path, count: int = 200) -> None:
    """A file of some pages, its log merged into it."""
    with Records(path) as records:
        records.merge(row(key(f"problem {k % 9} " + "x" * 200), candidate(k), time(1 + k))
                      for k in range(count))  # fmt: skip
    assert not path.with_name(path.name + "-wal").exists()


# --------------------------------------------------------------------------- what is kept


def test_what_was_added_is_there(path: Path) -> None:
    records = Records(path, {"llvm": "22"})
    assert records.of(KEY) == [] and records.rows() == [] and not path.exists()
    assert records.add(
        KEY, candidate(1), time(2), is_default=True, features={"k": 3.0}, origin="me"
    )
    assert records.add(KEY, candidate(2), Failure("wrong", "off by 3"))
    for reader in (records, Records(path)):
        a, b = reader.of(KEY)
        assert (a.key, a.candidate, a.outcome) == (KEY, candidate(1), time(2))
        assert a.is_default and a.features == {"k": 3.0} and a.versions == {"llvm": "22"}
        assert a.origin == "me" and a.device == KEY.device and a.date > "2026-01-01T00:00:00Z"
        assert b.outcome == Failure("wrong", "off by 3") and b.seconds is None


def test_one_row_per_candidate_the_one_with_more_samples(path: Path) -> None:
    records = Records(path)
    for outcome in (time(3, rounds=5), time(2, rounds=9), time(1, rounds=7)):
        records.add(KEY, candidate(1), outcome)
    records.add(KEY, candidate(2), time(9))
    assert [r.outcome for r in records.of(KEY)] == [time(2, rounds=9), time(9)]


def test_without_a_file_nothing_is_kept() -> None:
    records = Records(None)
    assert not records.add(KEY, candidate(1), time(1)) and records.merge([]) is None
    assert records.of_many([KEY]) == {KEY.digest: []} and records.rows() == []
    assert records.near(KEY, {"k": 1}, 3) == records.elsewhere(KEY) == []


def test_whatever_a_candidate_printed_is_kept_in_part(path: Path) -> None:
    records = Records(path, strict=True)
    assert records.add(KEY, candidate(1), Failure("crash", "a\0b\udc80" + "x" * 9999))
    (found,) = records.of(KEY)
    assert isinstance(found.outcome, Failure)
    assert found.outcome.detail == "a?b?" + "x" * 3996


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_times_that_are_none(path: Path, seconds: float) -> None:
    with pytest.raises(TunerError, match="field 'seconds'"):
        Records(path).add(KEY, candidate(1), Measurement(seconds, 0.1, 9.9, 5))
    assert not path.exists()


@settings(max_examples=15)
@given(st.lists(odd_rows, max_size=4))
def test_any_row_comes_back(given_rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder, Records(Path(folder) / "r") as records:
        records.merge(given_rows)
        assert records.rows() == combined(given_rows)


@settings(max_examples=10)
@given(st.lists(rows, max_size=8), st.lists(rows, max_size=8))
def test_merging_files_is_commutative_and_idempotent(a: list[Row], b: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for number, parts in enumerate(((a, b), (b, a), (a, b, b, a))):
            with Records(Path(folder) / str(number)) as records:
                for part in parts:
                    records.merge(part)
                assert records.merge([*b, *a]) == 0, "all of it was there"
                found.append(records.rows())
        assert found[0] == found[1] == found[2] == combined([*a, *b])


def test_rows_come_all_or_none(path: Path) -> None:
    records = Records(path)
    bad = row(KEY, candidate(2), time(1), date="today")
    with pytest.raises(TunerError, match="field 'date'"):
        records.merge([row(KEY, candidate(1), time(1)), bad])
    assert records.rows() == []


# --------------------------------------------------------------------------- who else is there

CHILD = textwrap.dedent(
    """
    import sys
    from tilewright.autotune.outcome import Measurement
    from tilewright.autotune.records import Records
    from tilewright.autotune.task import Candidate, Key
    path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    records = Records(path, strict=True)
    sys.stdin.readline()
    for k in range(count):
        kept = records.add(Key(f"{name} {k % 3}" + "x" * 999, "d", "n"),
                           Candidate("t", 1, {"k": k}), Measurement(1.0, 1.0, 1.0, 5))
        assert kept
        print(k, flush=True)
    """
)


def start(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(path), name, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("acknowledged", [1, 7, 60])
def test_a_killed_process_loses_nothing_that_was_acknowledged(
    path: Path, acknowledged: int
) -> None:
    with start(path, "killed", 100_000) as child:
        assert child.stdin and child.stdout
        child.stdin.write("\n")
        child.stdin.flush()
        lines = [child.stdout.readline() for _ in range(acknowledged)]
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.readlines()
    said = {int(line) for line in lines if line.endswith("\n")}
    found = {r.candidate.config["k"] for r in Records(path, strict=True).rows()}
    assert len(said) >= acknowledged and said <= found
    assert len(found - said) <= 1, "at most the one that it was about to acknowledge"


def test_three_processes_at_once(path: Path) -> None:
    children = [start(path, f"child {k}", 30) for k in range(3)]
    for child in children:  # all of them are ready, and the file is not there yet
        assert child.stdin
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        child.communicate()
        assert child.returncode == 0
    assert len(Records(path, strict=True).rows()) == 90


def test_threads_share_records(path: Path) -> None:
    records = Records(path, strict=True)

    def work(name: str) -> None:
        for k in range(20):
            records.add(key(name), candidate(k), time(1))
            assert len(records.of(key(name))) == k + 1

    threads = [threading.Thread(target=work, args=(f"t{k}",)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(records.rows()) == 80


def test_a_forked_process_opens_the_file_anew(path: Path) -> None:
    records = Records(path, strict=True)
    records.add(KEY, candidate(1), time(1))
    child = os.fork()
    if not child:
        os._exit(0 if records.add(KEY, candidate(2), time(1)) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert records.add(KEY, candidate(3), time(1)) and len(records.of(KEY)) == 3


def test_a_connection_of_the_parent_is_neither_used_nor_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_inherited", [])
    records = Records(path, strict=True)
    records.add(KEY, candidate(1), time(1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        assert records.add(KEY, candidate(2), time(1))
        (connection,) = module._inherited
        assert connection.execute("SELECT count(*) FROM rows").fetchone() == (2,)
        records.close()
    connection.close()


def test_nobody_opens_a_file_while_somebody_makes_or_moves_one(path: Path) -> None:
    records = Records(path, strict=True)
    writer = threading.Thread(target=records.add, args=(KEY, candidate(1), time(1)))
    with module._alone(path.parent):
        writer.start()
        writer.join(0.3)
        assert writer.is_alive() and not path.exists()
    writer.join()
    assert len(records.rows()) == 1


def test_a_file_that_vanishes_is_made_again(path: Path) -> None:
    records = Records(path, strict=True)
    records.add(KEY, candidate(1), time(1))
    path.unlink()  # its log stays behind
    assert records.add(KEY, candidate(2), time(1))
    assert [r.candidate for r in Records(path).of(KEY)] == [candidate(2)]


# --------------------------------------------------------------------------- faults of the file


def overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as f:
        f.seek(start)
        f.write(data)


def one_page_of_rows(path: Path) -> None:
    """One that no new row is written to."""
    dates = [m.start() for m in re.finditer(b"2026-01-31T", path.read_bytes())]
    overwrite(path, dates[len(dates) // 2] // 4096 * 4096, b"\xaa" * 4096)


def other_tables(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        for name in ("keys", "rows"):
            connection.execute(f"CREATE TABLE {name} (x)")
    connection.close()


def without_a_table(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE rows")
    connection.close()


DAMAGE = {
    "text": lambda p: p.write_text("these are no records, but a text that is long enough" * 99),
    "header": lambda p: overwrite(p, 0, b"\xff" * 16),
    "first page": lambda p: overwrite(p, 100, b"\xaa" * 3996),
    "all other pages": lambda p: overwrite(p, 4096, b"\xaa" * (p.stat().st_size - 4096)),
    "cut in the first page": lambda p: os.truncate(p, 1000),
    "cut later": lambda p: os.truncate(p, 5 * 4096),
    "one page of rows": one_page_of_rows,
    "other tables": other_tables,
    "without a table": without_a_table,
}


@pytest.mark.parametrize("first", ["read", "write"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_set_aside_with_one_warning(
    path: Path, damage: str, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path)
    DAMAGE[damage](path)
    before = path.read_bytes()
    records = Records(path, own=True)
    if first == "read":
        assert records.rows() == []
    assert records.add(KEY, candidate(1), time(1))
    assert [r.candidate for r in Records(path, strict=True).rows()] == [candidate(1)]
    (warning,) = warnings(caplog)
    (aside,) = path.parent.glob("*.damaged-*[0-9]")
    assert "set aside as " + aside.name in warning and "begun anew" in warning
    assert aside.read_bytes() == before
    assert damage != "other tables" or "it holds something else" in warning


def of_another_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (x)")
        connection.execute("PRAGMA user_version = 1")
    connection.close()


@pytest.mark.parametrize("damage", [*DAMAGE.values(), of_another_program])
def test_a_file_that_somebody_named_is_left_as_it_is(
    path: Path, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    fill(path)
    damage(path)
    before = path.read_bytes()
    with Records(path) as records, Records(path, strict=True) as strict:
        assert records.rows() == [] or damage is one_page_of_rows
        assert not records.add(KEY, candidate(1), time(1))
        for action in (records.check, strict.check, lambda: strict.add(KEY, candidate(1), time(1))):
            with pytest.raises(TunerError, match=r"no whole file of records.*left alone"):
                action()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if p.name[-4:] not in ("-wal", "-shm")] == [
        path.name
    ]
    assert len(warnings(caplog)) == 1


def test_whether_rows_can_be_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Records(None).check()
    Records(path).check()
    assert path.exists() and Records(path, strict=True).rows() == []
    with pytest.raises(TunerError, match="unable to open"):
        Records(path.parent / "none" / "r").check()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(TunerError, match="readonly"):
        Records(path).check()


@pytest.mark.parametrize("value", ["no JSON", "[1]", "3", "[" * 9000])
def test_a_row_that_cannot_be_read_is_left_out_and_replaced(
    path: Path, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    records = Records(path, strict=True)
    records.add(KEY, candidate(1), time(1))
    records.add(KEY, candidate(2), time(2))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE rows SET features = ? WHERE seconds = 1", (value,))
    connection.close()
    assert [r.candidate for r in records.of(KEY)] == [candidate(2)]
    assert "left out" in warnings(caplog)[0]
    assert records.add(KEY, candidate(1), time(3))
    assert [r.seconds for r in records.of(KEY)] == [3.0, 2.0]


@pytest.mark.parametrize("change", ["seconds = 'soon'", "low = 9e9", "high = NULL", "rounds = 'x'",
                                    "seconds = -1, low = -1"])  # fmt: skip
def test_a_time_that_is_none_is_left_out(path: Path, change: str) -> None:
    records = Records(path, strict=True)
    records.add(KEY, candidate(1), time(1))
    records.add(KEY, candidate(2), time(2))
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE rows SET {change} WHERE seconds = 1")
    connection.close()
    assert [r.candidate for r in records.of(KEY)] == [candidate(2)]
    assert records.add(KEY, candidate(1), time(3))
    assert [r.seconds for r in records.of(KEY)] == [3.0, 2.0]


def test_damage_under_an_open_connection(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(path)
    one, other = Records(path, own=True), Records(path, own=True)
    assert len(one.rows()) == len(other.rows()) == 200
    DAMAGE["all other pages"](path)
    for records in (one, other):
        records.rows()
    assert one.add(KEY, candidate(1), time(1)) and other.add(KEY, candidate(2), time(1))
    other.close()
    one.close()
    assert len(Records(path, strict=True).rows()) == 2
    assert len(warnings(caplog)) == 1


def test_what_was_set_aside_by_somebody_else_takes_no_log_along(path: Path) -> None:
    """Whoever still has the old file open leaves the log of the new one alone."""
    fill(path)
    holder = Records(path)
    holder.rows()
    os.replace(path, path.with_name("aside"))
    writer = Records(path, strict=True)
    assert writer.add(KEY, candidate(1), time(1))
    holder.close()
    log = path.with_name(path.name + "-wal")
    assert log.stat().st_size > 0
    assert len(Records(path).rows()) == 1
    writer.close()
    assert len(Records(path).rows()) == 1


def test_a_file_that_took_the_place_of_a_damaged_one_stays(path: Path) -> None:
    fill(path)
    late = Records(path, own=True)
    late.rows()
    os.replace(path, path.with_name("aside"))
    fill(path, 3)
    late._set_aside(path, "what it read before")
    assert len(Records(path, strict=True).rows()) == 3


def test_few_damaged_files_are_kept(path: Path) -> None:
    for _ in range(5):
        path.write_text("no records" * 999)
        Records(path, own=True).rows()
    assert len(list(path.parent.glob("*.damaged-*"))) == 2


def test_a_newer_version_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = path.read_bytes()
    records = Records(path)
    assert records.rows() == [] and not records.add(KEY, candidate(1), time(1))
    assert records.of(KEY) == [] and records.prune(failures=True) == 0
    records.close()
    assert path.read_bytes() == before
    (warning,) = warnings(caplog)
    assert "is of version 2, this Tilewright knows 1 only" in warning and str(path) in warning
    with pytest.raises(TunerError, match="is of version 2"):
        Records(path, strict=True).rows()


def test_a_folder_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = Records(tmp_path / "none" / "records.sqlite")
    assert records.rows() == []
    for _ in range(2):
        assert not records.add(KEY, candidate(1), time(1))
    (warning,) = warnings(caplog)
    assert "unable to open database file" in warning and not list(tmp_path.iterdir())


def test_a_locked_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    fill(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    records = Records(path)
    assert not records.add(KEY, candidate(1), time(1))
    assert len(records.rows()) == 200, "readers go on"
    assert "database is locked" in warnings(caplog)[0]
    holder.execute("ROLLBACK")
    holder.close()
    assert records.add(KEY, candidate(1), time(1)), "and it is not given up for good"


def test_a_folder_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    before = sorted(path.parent.iterdir())
    monkeypatch.setattr(os, "access", lambda *_: False)
    records = Records(path)
    assert len(records.rows()) == 200
    assert not records.add(KEY, candidate(1), time(1))
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("fault", [OSError(28, "No space left"), PermissionError(13, "denied")])
def test_a_damaged_file_that_cannot_be_moved(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise fault

    path.write_text("no records" * 999)
    monkeypatch.setattr(os, "replace", fail)
    records = Records(path, own=True)
    for _ in range(2):
        assert records.rows() == [] and not records.add(KEY, candidate(1), time(1))
    assert len(warnings(caplog)) == 1


def test_readers_see_what_was_committed_while_somebody_writes(path: Path) -> None:
    fill(path)
    holder = sqlite3.connect(path, isolation_level=None)
    assert holder.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    holder.execute("BEGIN IMMEDIATE")
    holder.execute("DELETE FROM rows")
    assert len(Records(path, strict=True).rows()) == 200
    holder.execute("COMMIT")
    holder.close()
    assert Records(path).rows() == []
