"""Where the records of tuning lie: beside the store, in a directory that passes the same checks."""

from __future__ import annotations

import platform
from typing import Final

import llvmlite

from ..autotune.records import Records
from .options import VERSION
from .store import Store

RECORDS_FILE: Final = "records.sqlite"


def open_records(*, writing: bool = False, strict: bool = False) -> Records:
    """The user's records; none are kept if caching is switched off or its directory is not ours.

    writing: make the directory if there is none. strict: as in `Records`.
    """
    path = Store().beside(RECORDS_FILE, create=writing)
    return Records(path, software(), strict=strict)


def software() -> dict[str, str]:
    """Versions of what makes and times kernels."""
    return {"tilewright": VERSION, "llvmlite": llvmlite.__version__,
            "python": platform.python_version()}  # fmt: skip
