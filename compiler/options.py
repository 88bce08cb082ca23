"""What a compilation can be asked for, and every environment variable that Tilewright reads."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypedDict

from .errors import OptionError

VERSION: Final = "0.1.0"

Numerics = Literal["reproducible", "standard", "reduced"]
NUMERICS: Final = ("reproducible", "standard", "reduced")

RECORDS_KEY: Final = "TILEWRIGHT_RECORDS_KEY"
SECRETS: Final = (RECORDS_KEY,)
"""Variables whose values are shown to nobody."""

ENVIRONMENT: Final[dict[str, str]] = {
    "TILEWRIGHT_THREADS": "how many threads run kernels (default: the CPUs this process may use)",
    "TILEWRIGHT_CACHE": "directory of built code and of records of tuning; `off` keeps neither",
    RECORDS_KEY: "secret of 16 bytes or more that signs files of records and checks signatures",
    "TILEWRIGHT_CPU": "build for a lesser CPU: x86-64-avx512, x86-64-avx2 or x86-64-sse",
    "TILEWRIGHT_CUDA_DRIVER": "path of NVIDIA's driver library, if not where the system looks",
    "TILEWRIGHT_CUDA_GRAPH": "off: launch the kernels of a GPU program one by one, in no graph",
    "TILEWRIGHT_GPU_CODE": "what else may have made code for GPUs that is in the store",
    "TILEWRIGHT_FUEL": "do only the first n rewrites of the graph, to bisect a miscompile",
    "TILEWRIGHT_DUMP": "directory that receives every stage and level of every compilation",
    "TILEWRIGHT_POISON": "1: fill memory with NaN before a call and wherever it was last used",
    "TILEWRIGHT_FAULT": "make candidates fail while tuning, and record nothing: segv@1,hang@25%",
    "TILEWRIGHT_DEBUG": "1 to 4: how much the logger `tilewright` reports on stderr",
    "XDG_CACHE_HOME": "where the cache directory is made if TILEWRIGHT_CACHE names none",
    "CUDA_HOME": "a CUDA toolkit whose tools and libraries are used",
    "CUDA_PATH": "the same, where CUDA_HOME is not set",
    "CUDA_VISIBLE_DEVICES": "which GPUs there are, as for all programs that use CUDA",
}


@dataclass(frozen=True, slots=True)
class Options:
    """The choices of one compilation, checked."""

    numerics: Numerics = "standard"
    memory_limit: int | None = None
    threads: int | None = None
    fuel: int | None = None
    dump: str = ""
    poison: bool = False
    reorder: bool = True
    inplace: bool = True
    donate: tuple[str, ...] = ()
    records: bool = True
    cuda_graph: bool = True


class Asked(TypedDict, total=False):
    """The arguments of `options` that are a compilation's and change nothing about its source or
    target, for those who only pass them on."""

    numerics: str
    memory_limit: int | str | None
    threads: int | None
    reorder: bool
    inplace: bool
    donate: Sequence[str]


def options(
    *, numerics: str = "standard", memory_limit: int | str | None = None,
    threads: int | None = None, reorder: bool = True, inplace: bool = True,
    donate: Sequence[str] = (), tune: object = None,
) -> Options:  # fmt: skip
    """Arguments and environment together. Raises OptionError for a value that makes no sense.

    reorder, inplace: whether the memory plan may change the order of kernels, and let results take
    the place of operands; to see what that saves. tune: None to use records, False not to.
    """
    if tune is not None and tune is not False:
        raise OptionError(f"tune={tune!r}: expected None or False")
    if numerics not in NUMERICS:
        raise OptionError(f"numerics={numerics!r}: expected one of {', '.join(NUMERICS)}")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise OptionError(f"threads={threads!r}: expected a positive number")
    if not isinstance(donate, (list, tuple)) or not all(isinstance(n, str) for n in donate):
        raise OptionError(f"donate={donate!r}: expected the names of inputs, such as ['x']")
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    return Options(
        numerics,  # type: ignore[arg-type]
        limit,
        threads,
        _number("TILEWRIGHT_FUEL"),
        os.environ.get("TILEWRIGHT_DUMP", ""),
        os.environ.get("TILEWRIGHT_POISON", "") == "1",
        reorder,
        inplace,
        tuple(dict.fromkeys(donate)),
        tune is None,
        os.environ.get("TILEWRIGHT_CUDA_GRAPH", "") != "off",
    )


def check_donated(donate: Sequence[str], inputs: Sequence[str]) -> None:
    """Raise OptionError unless all names are those of inputs."""
    unknown = [n for n in donate if n not in inputs]
    if unknown:
        raise OptionError(f"donate: there is no input {unknown}; the inputs are {list(inputs)}")


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    if not text:
        return None
    if not text.isdigit():
        raise OptionError(f"{variable}={text!r}: expected a number")
    return int(text)


_BYTES: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B|)\s*\Z")
_UNIT: Final = {"": 1, "B": 1, **{
    f"{p}{i}B": (1024 if i else 1000) ** k
    for k, p in enumerate("KMGT", 1) for i in ("i", "")
}}  # fmt: skip


def parse_bytes(value: int | str) -> int:
    """An amount of memory: a number of bytes, or text like "512MiB" or "1.5 GB"."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    m = _BYTES.match(value) if isinstance(value, str) else None
    if m is None:
        raise OptionError(f"{value!r} is not an amount of memory such as 1048576 or '512MiB'")
    return int(float(m[1]) * _UNIT[m[2]])


_SECONDS: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|)\s*\Z")
_SECONDS_UNIT: Final = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_seconds(value: float | str) -> float:
    """A length of time: a number of seconds, or text like "60s", "10m" or "1.5 h"."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        m = _SECONDS.match(value) if isinstance(value, str) else None
        seconds = float(m[1]) * _SECONDS_UNIT[m[2]] if m else math.nan
    if not 0 < seconds < math.inf:
        raise OptionError(f"{value!r} is not a length of time such as 90, '60s' or '10m'")
    return seconds
