"""The report on a program as one HTML page, and what it is gathered from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..codegen.cpu.target import CpuTarget
from ..codegen.cuda.target import CudaTarget
from ..inspect.page.assemble import page
from ..inspect.page.facts import Code, Report
from ..inspect.profile import Profile
from ..inspect.views import Compilation, cpu_code
from ..records import open_records
from ..tuning.fingerprint import kernel_device
from ..tuning.measured import measured


def cpu_page(
    c: Compilation[CpuTarget], name: str, threads: int, stations: Mapping[str, float],
    profile: Profile | None,
) -> str:  # fmt: skip
    """The page of a program for a CPU. stations: seconds of what came after the passes."""
    with open_records() as records:
        rows = measured(c, kernel_device(c.target, threads), records)
    target = f"{c.target.cpu}, {c.target.vector_bits}-bit vectors"
    return page(Report(name, target, c, cpu_code(c.target), stations, profile, rows))


def gpu_page(
    c: Compilation[CudaTarget], code: Code, name: str, stations: Mapping[str, float],
    profile: Profile | None,
) -> str:  # fmt: skip
    """The page of a program for a GPU."""
    return page(Report(name, str(c.target), c, code, stations, profile))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Raises OSError."""
    Path(path).write_text(text, encoding="utf-8")
