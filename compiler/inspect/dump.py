"""TILEWRIGHT_DUMP: every level of every compilation as files.

`DIR/00_net/04_fold_scales.txt`: compilations are numbered in the order in which a process makes
them, stages and levels in theirs, so that names are the same in every run of a program and two runs
can be compared file by file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

from ..errors import OptionError, TargetError
from ..graph.text import to_text
from .stages import stage_names
from .views import Compilation

_ENDING: Final = {"source": "py", "llvm": "ll", "asm": "s", "ptx": "ptx", "sass": "sass"}
_number: Final = count()


def write_dump(
    c: Compilation[Any], directory: str, levels: Sequence[str], view: Callable[[str], str]
) -> None:
    """Write all stages, then the levels, of which `view` gives the text; one that cannot be had
    here (machine code without the tools for it) is left out. Raises OptionError when the directory
    cannot be used."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", c.source.name)[:40]
    folder = Path(directory) / f"{next(_number):02d}_{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stem, stage in zip(stage_names(c.stages), c.stages, strict=True):
            (folder / f"{stem}.txt").write_text(to_text(stage.graph), encoding="utf-8")
        for k, level in enumerate(levels, len(c.stages)):
            file = folder / f"{k:02d}_{level}.{_ENDING.get(level, 'txt')}"
            try:
                file.write_text(view(level), encoding="utf-8")
            except TargetError:
                continue
    except OSError as e:
        raise OptionError(f"TILEWRIGHT_DUMP={directory!r} cannot be written: {e}") from e
