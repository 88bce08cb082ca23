"""`tilewright records`: what tuning measured, and how it goes from machine to machine."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from ...autotune.errors import TunerError
from ...autotune.exchange import MOST_BYTES, Loaded, dump, load
from ...autotune.outcome import Failure
from ...autotune.records import Records
from ...autotune.row import Row, combined, to_data
from ..errors import OptionError, RecordsError, TilewrightError
from ..kernels.select import TEMPLATES
from ..options import RECORDS_KEY
from ..records import open_file, open_records
from ..text import human_time
from ..tuning import fingerprint, problem
from .console import emit_json, show, show_table
from .models import add_json_argument

_AGE: Final = re.compile(r"(\d{1,6})([hdw])")
_SECONDS: Final = {"h": 3600, "d": 86_400, "w": 604_800}


def add_to(commands: Any) -> None:
    """The arguments of this command."""
    p: argparse.ArgumentParser = commands.add_parser(
        "records",
        help="list, exchange or prune what tuning measured",
        description="What tuning measured: records.sqlite in TILEWRIGHT_CACHE, or in the user's "
        "cache directory, or a FILE of `tilewright tune --records FILE`. Files for other machines "
        "are JSON lines, see docs/records.md.",
    )
    actions = p.add_subparsers(dest="action", metavar="action", required=True)

    def action(name: str, handler: Callable[[argparse.Namespace], int], text: str) -> Any:
        parser = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        parser.set_defaults(handler=handler)
        return parser

    ls = action("ls", list_problems, "per problem and device: candidates, best, default, gain")
    rows = action("show", show_rows, "all rows of a problem")
    rows.add_argument("digest", help="the problem's digest, as `ls` prints it, or how it begins")
    export = action("export", export_rows, "write records to a file for other machines")
    export.add_argument("digest", nargs="*", help="only these problems (default: all)")
    add_in = action("import", import_files, "check files, all of each, and add their rows")
    merge = action("merge", merge_files, "make one file of several; the records stay as they are")
    for parser in (add_in, merge):
        parser.add_argument("file", nargs="+", help="a file that `export` or `merge` wrote")
    prune = action("prune", prune_rows, "remove rows for which all that is given holds")
    prune.add_argument("--older-than", metavar="90d", help="hours (h), days (d) or weeks (w)")
    prune.add_argument("--outdated", action="store_true",
                       help="of templates that have another version now, or are gone")  # fmt: skip
    prune.add_argument("--failures", action="store_true", help="without a time, to try them again")
    prune.add_argument("--dry-run", action="store_true", help="only count the rows")
    for parser in (ls, rows, export, add_in, prune):
        parser.add_argument("--records", metavar="FILE", type=Path,
                            help="a file of records instead of the cache's")  # fmt: skip
    for parser in (ls, export, prune):
        parser.add_argument("--device", metavar="TEXT", help="of devices with this in their name")
    for parser in (export, merge):
        parser.add_argument("-o", "--output", metavar="FILE", type=Path,
                            help="where to (default: standard output)")  # fmt: skip
    for parser in (export, add_in, merge):
        parser.add_argument(
            "--key-file", metavar="FILE", type=Path,
            help="file with a secret: what is written is signed with it, and what is read must be "
            f"(default: {RECORDS_KEY}, if that is set)",
        )  # fmt: skip
    for parser in (ls, rows, add_in, prune):
        add_json_argument(parser)


# --------------------------------------------------------------------------- looking


@dataclass(frozen=True, slots=True)
class Summary:
    """The rows of one key. best, default: None where none was measured; of current templates."""

    rows: tuple[Row, ...]
    best: Row | None
    default: Row | None

    @property
    def gain(self) -> float | None:
        """How many times as fast as the default the best is."""
        if self.best is None or self.default is None:
            return None
        return (self.default.seconds or 0.0) / (self.best.seconds or 1.0)


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """One for each key, in order. Of two rows that were the default, the newer one counts."""
    found = []
    for _, group in groupby(rows, key=lambda r: r.key):
        mine = tuple(group)
        timed = [r for r in mine if r.seconds is not None and not outdated(r)]
        default = max((r for r in timed if r.is_default), key=lambda r: r.date, default=None)
        best = min(timed, key=lambda r: r.seconds or 0.0, default=None)
        found.append(Summary(mine, best, default))
    return found


@cache
def current() -> Mapping[str, int]:
    """The templates of today with their versions, those for GPUs among them."""
    from ..api.gpu import every_template

    return {t.name: t.version for t in (*every_template(), *TEMPLATES)}


def outdated(row: Row) -> bool:
    """Whether the row's template has another version now."""
    return current().get(row.candidate.template) != row.candidate.version


def list_problems(args: argparse.Namespace) -> int:
    """Every problem with its best and default."""
    with _records(args) as records:
        found = summaries([r for r in records.rows() if _on(r.device, args.device)])
        where = records.path
    if args.json:
        emit_json({"file": where and str(where), "problems": [_summary(s) for s in found]})
        return 0
    if where is None:
        show("no records are kept: the cache is switched off (TILEWRIGHT_CACHE) or not trusted")
        return 0
    if found:
        show_table(
            [(s.rows[0].key.digest, _what(s.rows[0]), _device(s.rows[0]), s.rows[0].key.numerics,
              _counts(s), _time(s.default), _time(s.best), f"{s.gain:.2f}" if s.gain else "-",
              max(r.date for r in s.rows)[:10]) for s in found],
            ("digest", "problem", "device", "numerics", "candidates", "default", "best", "gain",
             "date"), "llllrrrrl",
        )  # fmt: skip
    show(f"{len(found)} problems, {sum(len(s.rows) for s in found)} rows in {where}")
    return 0


def show_rows(args: argparse.Namespace) -> int:
    """The rows of the problems whose digest begins like that, the fastest first."""
    with _records(args) as records:
        found = summaries(records.rows(args.digest))
    if not found:
        raise RecordsError(f"no problem has a digest that begins with {args.digest!r}: "
                           "`tilewright records ls` lists them")  # fmt: skip
    if args.json:
        emit_json({"problems": [
            {**_summary(s), "rows": [to_data(r) | {"outdated": outdated(r)} for r in s.rows]}
            for s in found
        ]})  # fmt: skip
        return 0
    for s in found:
        key = s.rows[0].key
        show(f"{key.digest}: {_what(s.rows[0])}, {key.numerics}, on {_device(s.rows[0])}")
        for line in key.problem.splitlines():
            show(f"  {line}")
        rows = sorted(s.rows, key=lambda r: (r.seconds is None, r.seconds or 0.0, r.identity))
        show_table([_shown(r) for r in rows],
                   ("time", "95 % interval", "rounds", "candidate", "notes", "date", "origin"),
                   "rlrllll")  # fmt: skip
        show()
    return 0


def _shown(r: Row) -> tuple[str, ...]:
    c, found = r.candidate, r.outcome
    notes = ["default"] if r.is_default else []
    if outdated(r):
        notes.append("outdated")
    if isinstance(found, Failure):
        numbers = "-", "-", "-"
        notes.append(f"{found.kind}: {found.detail}" if found.detail else found.kind)
    else:
        interval = f"{human_time(found.low)} to {human_time(found.high)}"
        numbers = human_time(found.seconds), interval, str(found.rounds)
        if found.contaminated:
            notes.append("disturbed")
    config = " ".join(f"{k}={v}" for k, v in c.config.items())
    name = f"{c.template} v{c.version} {config}".rstrip()
    return (*numbers, name, ", ".join(notes), r.date[:16].replace("T", " "), r.origin)


def _summary(s: Summary) -> dict[str, Any]:
    def one(r: Row | None) -> dict[str, Any] | None:
        if r is None:
            return None
        return {"template": r.candidate.template, "version": r.candidate.version,
                "config": dict(r.candidate.config), "seconds": r.seconds}  # fmt: skip

    key = s.rows[0].key
    return {
        "digest": key.digest, "problem": _what(s.rows[0]), "device": _device(s.rows[0]),
        "numerics": key.numerics, "candidates": len(s.rows),
        "failures": sum(r.seconds is None for r in s.rows),
        "outdated": sum(map(outdated, s.rows)), "best": one(s.best), "default": one(s.default),
        "gain": s.gain, "date": max(r.date for r in s.rows),
    }  # fmt: skip


def _counts(s: Summary) -> str:
    failed, old = sum(r.seconds is None for r in s.rows), sum(map(outdated, s.rows))
    more = [f"{n} {what}" for n, what in ((failed, "failed"), (old, "outdated")) if n]
    return f"{len(s.rows)} ({', '.join(more)})" if more else str(len(s.rows))


def _time(row: Row | None) -> str:
    return "-" if row is None or row.seconds is None else human_time(row.seconds)


def _what(row: Row) -> str:
    """The problem in a few words. Whatever somebody's file says that it is, must not stop us."""
    try:
        return problem.parse(row.key.problem).label
    except (TilewrightError, ValueError, TypeError, LookupError, RecursionError):
        first = row.key.problem.splitlines()[0]
        return first if len(first) <= 60 else first[:57] + "..."


def _device(row: Row) -> str:
    return fingerprint.label(row.device)


def _on(device: str, text: str | None) -> bool:
    return text is None or text.lower() in fingerprint.label(device).lower()


# --------------------------------------------------------------------------- exchanging


def export_rows(args: argparse.Namespace) -> int:
    """Write rows to a file."""
    secret = _secret(args)
    with _records(args) as records:
        rows = [r for digest in args.digest or [""] for r in records.rows(digest)]
    kept = [r for r in rows if _on(r.device, args.device)]
    if not kept and (args.digest or args.device):
        raise RecordsError("no records are of these problems and devices")
    _write(kept, secret, args.output)
    return 0


def import_files(args: argparse.Namespace) -> int:
    """Add the rows of files."""
    secret = _secret(args)
    loaded = [(name, _load(name, secret)) for name in args.file]
    answers = []
    with _records(args, writing=True) as records:
        if records.path is None:
            raise RecordsError("no records are kept: the cache is switched off "
                               "(TILEWRIGHT_CACHE) or not trusted")  # fmt: skip
        for name, each in loaded:
            new = records.merge(each.rows)
            answers.append({"file": name, "rows": len(each.rows), "new": new})
            if not args.json:
                show(f"{name}: {len(each.rows)} rows, {new} of them new or better")
    if args.json:
        emit_json({"file": str(records.path), "imported": answers})
    return 0


def merge_files(args: argparse.Namespace) -> int:
    """Make one file of several."""
    secret = _secret(args)
    _write([r for name in args.file for r in _load(name, secret).rows], secret, args.output)
    return 0


def _write(rows: Sequence[Row], secret: bytes | None, output: Path | None) -> None:
    kept = combined(rows)
    with _told():
        data = dump(kept, secret)
    if output is None:
        sys.stdout.write(data.decode("ascii"))
        return
    output.write_bytes(data)
    show(f"{len(kept)} rows in {output}{', signed' if secret else ''}")


def _load(name: str, secret: bytes | None) -> Loaded:
    with open(name, "rb") as f, _told(name):
        loaded = load(f.read(MOST_BYTES + 1), secret)
    if loaded.signed and secret is None:
        print(f"warning: {name} is signed, but no key is given: its signature was not checked",
              file=sys.stderr)  # fmt: skip
    return loaded


def _secret(args: argparse.Namespace) -> bytes | None:
    """The key for signatures, if there is one."""
    if args.key_file is None:
        return os.environ.get(RECORDS_KEY, "").encode() or None
    secret = Path(args.key_file).read_bytes().rstrip(b"\r\n")
    if not secret:
        raise OptionError(f"--key-file {args.key_file}: the file is empty")
    return secret


# --------------------------------------------------------------------------- removing


def prune_rows(args: argparse.Namespace) -> int:
    """Remove rows by age, version, device or failure."""
    if not (args.older_than or args.outdated or args.device or args.failures):
        raise OptionError(
            "say which rows to remove: --older-than, --outdated, --device, --failures"
        )
    before = None if args.older_than is None else _date_before(args.older_than)
    with _records(args) as records:
        devices = None
        if args.device is not None:
            names = {r.device for r in records.rows()}
            devices = sorted(n for n in names if _on(n, args.device))
        gone = records.prune(
            before=before, outdated=current() if args.outdated else None, devices=devices,
            failures=args.failures, dry=args.dry_run,
        )  # fmt: skip
    if args.json:
        emit_json({"file": records.path and str(records.path), "removed": gone,
                   "dry": args.dry_run})  # fmt: skip
    else:
        show(f"{gone} rows {'would go' if args.dry_run else 'removed'}")
    return 0


def _date_before(age: str) -> str:
    """The date so long ago, as rows have it."""
    m = _AGE.fullmatch(age)
    if m is None:
        raise OptionError(
            f"--older-than {age!r}: expected hours, days or weeks, such as 12h or 90d"
        )
    then = max(time.time() - int(m[1]) * _SECONDS[m[2]], 0.0)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(then))


@contextmanager
def _records(args: argparse.Namespace, *, writing: bool = False) -> Iterator[Records]:
    """The records, closed in the end; what is wrong with them stops the command."""
    opened = open_records(writing=writing, strict=True) if args.records is None \
        else open_file(args.records, strict=True)  # fmt: skip
    with _told(), opened as records:
        yield records


@contextmanager
def _told(where: str = "") -> Iterator[None]:
    """Errors of the tuner as errors of Tilewright. where: the file that they are about."""
    try:
        yield
    except TunerError as e:
        raise RecordsError(f"{where}, {e}" if where and str(e).startswith("line ")
                           else f"{where}: {e}" if where else str(e)) from e  # fmt: skip
