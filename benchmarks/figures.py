"""How the pages of figures write numbers and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def mib(count: float) -> str:
    """Bytes in MiB, three digits."""
    x = count / 2**20
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}"


def fine(x: float) -> str:
    return f"{x:.1%}"


def percent(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.0%}"


def distinct(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def mean_of(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def mean(ratios: Iterable[float]) -> float:
    """The geometric mean of those that are numbers; NaN of none."""
    logs = [math.log(r) for r in ratios if r > 0]
    return math.exp(mean_of(logs)) if logs else math.nan


def ratio(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.2f}x"


def ms(seconds: float) -> str:
    """Milliseconds, three digits."""
    x = seconds * 1e3
    return (
        f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}" if x >= 1 else f"{x:.3f}"
    )


def plain(text: str) -> str:
    """Words of other programs, without what Markdown reads as more than words."""
    return "".join(c for c in text if c not in "|`*_<>[]\\").strip()


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|---" + "|--:" * (len(header) - 1) + "|")
    return "\n".join(lines) + "\n"
