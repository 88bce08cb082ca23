"""Where the records of tuning lie: beside the store, in a directory that passes the same checks."""

from __future__ import annotations

import os
import platform
from typing import Final

import llvmlite

from ..autotune.errors import TunerError
from ..autotune.records import Records
from .errors import RecordsError
from .options import VERSION
from .store import Store

RECORDS_FILE: Final = "records.sqlite"


def open_records(*, writing: bool = False, strict: bool = False) -> Records:
    """The user's records; none are kept if caching is switched off or its directory is not ours.

    writing: make the directory if there is none. strict: as in `Records`.
    """
    path = Store().beside(RECORDS_FILE, create=writing)
    return Records(path, software(), strict=strict, own=True)


def open_file(path: str | os.PathLike[str], *, strict: bool = False) -> Records:
    """The records in a file that the user named, which is left alone where it holds anything else.

    Raises RecordsError where there are none.
    """
    if not os.path.exists(path):
        raise RecordsError(f"{os.fspath(path)}: there is no such file of records")
    return Records(path, software(), strict=strict)


def make_file(path: str | os.PathLike[str]) -> Records:
    """As `open_file`, to keep rows in; one that is not there is made.

    Raises RecordsError where that is not possible, before anybody has measured anything in vain.
    """
    records = Records(path, software())
    try:
        records.check()
    except TunerError as e:
        raise RecordsError(f"{e}; name another file, or none to use the cache's") from e
    return records


def software() -> dict[str, str]:
    """Versions of what makes and times kernels."""
    return {"tilewright": VERSION, "llvmlite": llvmlite.__version__,
            "python": platform.python_version()}  # fmt: skip
