"""`tilewright records`: what it lists, what it exchanges, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import time as clock
from pathlib import Path
from typing import Any

import pytest

from tilewright.autotune.exchange import dump, load
from tilewright.autotune.outcome import Failure, Measurement, Outcome
from tilewright.autotune.row import Row
from tilewright.autotune.task import Candidate, Key
from tilewright.compiler.cli import main
from tilewright.compiler.cli.records import current
from tilewright.compiler.errors import RecordsError
from tilewright.compiler.records import make_file, open_records

Capture = pytest.CaptureFixture[str]

HERE = json.dumps({"kind": "cpu", "name": "Quick One", "vendor": "V", "cpu": "q"})
THERE = json.dumps({"kind": "cpu", "name": "Slow Two", "vendor": "V", "cpu": "s"})
NOW = current()["direct_conv"]
CONV = Key("tilewright problem 1\nof which \x1b[31m nothing parses", HERE, "standard")
GEMM = Key("gemm", THERE, "reproducible")
SECRET = "a secret that is long enough"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TILEWRIGHT_RECORDS_KEY", raising=False)
    return tmp_path / "cache"


def days_ago(days: int) -> str:
    return clock.strftime("%Y-%m-%dT%H:%M:%SZ", clock.gmtime(clock.time() - 86_400 * days))


def row(
    key: Key, tile: int, outcome: Outcome | float, days: int = 0, *, version: int = NOW,
    default: bool = False,
) -> Row:  # fmt: skip
    if isinstance(outcome, float):
        outcome = Measurement(outcome, outcome * 0.9, outcome * 1.1, 5)
    candidate = Candidate("direct_conv", version, {"tile": tile})
    return Row(key, candidate, outcome, default, {"k": 3.0}, days_ago(days), {"llvm": "22"}, "me")


ROWS = [
    row(CONV, 1, 0.002, 9, default=True),
    row(CONV, 2, 0.001, 5),
    row(CONV, 3, Failure("wrong", "off by \x1b[31m 3"), 7),
    row(CONV, 4, 0.0001, 400, version=NOW - 1),
    row(GEMM, 1, 0.5),
]


@pytest.fixture
def filled(cache: Path) -> Path:
    with open_records(writing=True, strict=True) as records:
        records.merge(ROWS)
    return cache


def tilewright(capsys: Capture, *arguments: str) -> str:
    assert main.main(["records", *arguments]) == 0
    return capsys.readouterr().out


def answer(capsys: Capture, *arguments: str) -> Any:
    return json.loads(tilewright(capsys, *arguments, "--json"))


def refused(capsys: Capture, *arguments: str) -> str:
    assert main.main(["records", *arguments]) == 2
    return capsys.readouterr().err


def kept() -> list[Row]:
    with open_records(strict=True) as records:
        return records.rows()


# --------------------------------------------------------------------------- looking


def test_problems_are_listed(filled: Path, capsys: Capture) -> None:
    gemm, conv = answer(capsys, "ls")["problems"]
    assert (conv["digest"], conv["numerics"]) == (CONV.digest, "standard")
    assert (conv["candidates"], conv["failures"], conv["outdated"]) == (4, 1, 1)
    assert conv["best"]["config"] == {"tile": 2}, "an outdated template's time does not count"
    assert conv["default"]["seconds"] == 0.002 and conv["gain"] == pytest.approx(2)
    assert gemm["default"] is gemm["gain"] is None and gemm["best"]["seconds"] == 0.5
    out = tilewright(capsys, "ls")
    assert "Quick One" in out and "4 (1 failed, 1 outdated)" in out and "2.00" in out
    assert f"2 problems, 5 rows in {filled / 'records.sqlite'}" in out
    (only,) = answer(capsys, "ls", "--device", "slow")["problems"]
    assert only["digest"] == GEMM.digest


def test_listing_makes_nothing(cache: Path, capsys: Capture) -> None:
    assert "0 problems, 0 rows" in tilewright(capsys, "ls") and not cache.exists()


def test_all_rows_of_a_problem_the_fastest_first(filled: Path, capsys: Capture) -> None:
    out = tilewright(capsys, "show", CONV.digest[:6])
    assert [int(t) for t in re.findall(r"tile=(\d)", out)] == [4, 2, 1, 3]
    assert "default" in out and "outdated" in out and "wrong: off by" in out
    assert "\x1b" not in out and "of which" in out
    (only,) = answer(capsys, "show", CONV.digest)["problems"]
    assert len(only["rows"]) == 4 and only["rows"][0]["versions"] == {"llvm": "22"}
    assert "no problem has a digest" in refused(capsys, "show", "xyz")


# --------------------------------------------------------------------------- exchanging


def test_what_is_exported_is_imported_elsewhere(
    filled: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "all.jsonl"
    assert f"5 rows in {file}" in tilewright(capsys, "export", "-o", str(file))
    assert tilewright(capsys, "export") == file.read_text()
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "other"))
    assert answer(capsys, "import", str(file))["imported"][0]["new"] == 5
    assert kept() == sorted(ROWS, key=lambda r: r.identity)
    assert "5 rows, 0 of them new or better" in tilewright(capsys, "import", str(file))


def test_part_of_it_is_exported(filled: Path, capsys: Capture) -> None:
    assert load(tilewright(capsys, "export", GEMM.digest[:5]).encode()).rows == (ROWS[4],)
    assert load(tilewright(capsys, "export", "--device", "Two").encode()).rows == (ROWS[4],)
    assert "no records are of these" in refused(capsys, "export", "--device", "three")


def test_merging_files_leaves_the_records_alone(
    cache: Path, tmp_path: Path, capsys: Capture
) -> None:
    a, b, out = (tmp_path / n for n in ("a", "b", "out"))
    better = row(CONV, 1, Measurement(0.003, 0.002, 0.004, 50))
    a.write_bytes(dump(ROWS[:3]))
    b.write_bytes(dump([better, ROWS[4]]))
    tilewright(capsys, "merge", str(a), str(b), "-o", str(out))
    assert load(out.read_bytes()).rows == (ROWS[4], better, *ROWS[1:3])
    assert tilewright(capsys, "merge", str(b), str(a), str(b)) == out.read_text()
    assert not cache.exists()


def test_a_key_signs_and_checks(
    filled: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, signed, key = (tmp_path / n for n in ("plain", "signed", "key"))
    key.write_text(SECRET + "\n")
    tilewright(capsys, "export", "-o", str(plain))
    assert "signed" in tilewright(capsys, "export", "-o", str(signed), "--key-file", str(key))
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "other"))
    main.main(["records", "import", str(signed)])
    assert "its signature was not checked" in capsys.readouterr().err
    monkeypatch.setenv("TILEWRIGHT_RECORDS_KEY", SECRET)
    tilewright(capsys, "import", str(signed))
    assert tilewright(capsys, "merge", str(signed)).encode() == signed.read_bytes()
    altered = tmp_path / "altered"
    altered.write_bytes(signed.read_bytes().replace(b'"seconds":0.5', b'"seconds":0.1'))
    for action in ("import", "merge"):
        assert f"{plain}: the file is not signed" in refused(capsys, action, str(plain))
        assert f"{altered}: the signature is wrong" in refused(capsys, action, str(altered))
    monkeypatch.setenv("TILEWRIGHT_RECORDS_KEY", "another key, not the same")
    assert "the signature is wrong" in refused(capsys, "import", str(signed))
    tilewright(capsys, "import", str(signed), "--key-file", str(key))
    monkeypatch.setenv("TILEWRIGHT_RECORDS_KEY", "short")
    assert "can be guessed" in refused(capsys, "export")
    key.write_text("\n")
    assert "is empty" in refused(capsys, "export", "--key-file", str(key))


def test_the_key_is_shown_to_nobody(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_RECORDS_KEY", SECRET)
    for arguments in (["env"], ["env", "--json"], ["records", "ls"]):
        assert main.main(arguments) == 0
        assert SECRET not in capsys.readouterr().out


def test_a_bad_file_adds_nothing_not_even_with_a_good_one(
    cache: Path, tmp_path: Path, capsys: Capture
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(dump(ROWS))
    bad.write_bytes(dump(ROWS).replace(b'"seconds":0.5', b'"seconds":-5'))
    message = refused(capsys, "import", str(good), str(bad))
    assert f"error: {bad}, line 2, field 'seconds': expected a number from 0" in message
    assert not cache.exists()
    assert "No such file" in refused(capsys, "import", str(tmp_path / "none"))


# --------------------------------------------------------------------------- removing


def test_rows_of_gpus_are_not_outdated(capsys: Capture) -> None:
    versions = {name: version for name, version in current().items() if name.startswith("gpu_")}
    assert {"gpu_nest", "gpu_tiles", "gpu_mma", "gpu_wgmma"} <= set(versions)
    with open_records(writing=True) as records:
        for name, version in versions.items():
            records.add(CONV, Candidate(name, version, {}), Measurement(1.0, 1.0, 1.0, 5))
            records.add(CONV, Candidate(name, version + 1, {}), Measurement(1.0, 1.0, 1.0, 5))
    assert answer(capsys, "prune", "--outdated")["removed"] == len(versions)
    assert len(kept()) == len(versions)


def test_pruning(filled: Path, capsys: Capture) -> None:
    assert "1 rows would go" in tilewright(capsys, "prune", "--outdated", "--dry-run")
    assert len(kept()) == 5
    assert "1 rows removed" in tilewright(capsys, "prune", "--outdated")
    assert answer(capsys, "prune", "--older-than", "52w")["removed"] == 0
    assert answer(capsys, "prune", "--older-than", "8d", "--device", "slow")["removed"] == 0
    assert answer(capsys, "prune", "--older-than", "8d")["removed"] == 1
    assert answer(capsys, "prune", "--failures")["removed"] == 1
    assert answer(capsys, "prune", "--device", "slow")["removed"] == 1
    assert kept() == [ROWS[1]]
    assert "say which rows" in refused(capsys, "prune")
    assert "expected hours" in refused(capsys, "prune", "--older-than", "3 months")


# --------------------------------------------------------------------------- files by name


def test_a_file_of_its_own_is_listed_exported_and_imported(
    cache: Path, tmp_path: Path, capsys: Capture
) -> None:
    file, out = str(tmp_path / "mine.sqlite"), str(tmp_path / "out")
    with make_file(file) as records:
        records.merge(ROWS)
    assert f"5 rows in {file}" in tilewright(capsys, "ls", "--records", file)
    assert "tile=2" in tilewright(capsys, "show", CONV.digest, "--records", file)
    tilewright(capsys, "export", "--records", file, "-o", out)
    assert "2 problems" in tilewright(capsys, "ls", "--records", file) and not cache.exists()
    tilewright(capsys, "import", out)
    assert kept() == sorted(ROWS, key=lambda r: r.identity)
    assert answer(capsys, "prune", "--failures", "--records", file)["removed"] == 1
    assert answer(capsys, "import", out, "--records", file)["imported"][0]["new"] == 1
    assert len(kept()) == 5


def test_a_file_that_holds_none_is_refused_and_left_alone(
    cache: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "model.onnx"
    assert "no such file" in refused(capsys, "ls", "--records", str(file))
    file.write_text("a model " * 999)
    for action in (["ls"], ["export"], ["prune", "--failures"]):
        assert "left alone" in refused(capsys, *action, "--records", str(file))
    with pytest.raises(RecordsError, match="left alone; name another file"):
        make_file(file)
    assert file.read_text() == "a model " * 999 and list(tmp_path.iterdir()) == [file]


# --------------------------------------------------------------------------- no records


def test_a_cache_that_is_switched_off(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(dump(ROWS))
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    assert "no records are kept" in tilewright(capsys, "ls")
    assert answer(capsys, "ls") == {"file": None, "problems": []}
    assert "no records are kept" in refused(capsys, "import", str(file))
    assert answer(capsys, "prune", "--outdated")["removed"] == 0


def test_a_newer_file_stops_the_command(
    filled: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.autotune.queries.VERSION", 0)
    assert "it is left alone" in refused(capsys, "ls")


@pytest.mark.parametrize("kind", ["link to a directory", "link to a file", "file", "other user"])
def test_records_that_are_not_ours_are_not_touched(
    kind: str, filled: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, database = tmp_path / "away", filled / "records.sqlite"
    if kind == "link to a directory":
        filled.rename(away)
        filled.symlink_to(away)
    elif kind == "link to a file":
        database.rename(away)
        database.symlink_to(away)
    elif kind == "file":
        database.unlink()
        database.mkdir()
    else:
        monkeypatch.setattr(os, "geteuid", lambda: filled.stat().st_uid + 1)
    with open_records() as records:
        assert records.path is None and records.rows() == []
    assert "no records are kept" in tilewright(capsys, "ls")


def test_the_directory_is_private(cache: Path) -> None:
    previous = os.umask(0)
    try:
        open_records()
        assert not cache.exists(), "looking makes nothing"
        open_records(writing=True)
    finally:
        os.umask(previous)
    assert cache.stat().st_mode & 0o777 == 0o700
