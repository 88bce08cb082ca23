"""Rows on their way into records: what those refuse for now waits, and is offered again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .records import PATIENCE, Records
from .row import Row

AGAIN: Final = 10 * PATIENCE
"""Seconds without another try after one that failed: a locked file takes a tenth of the time."""


class Keeper:
    """Keeps rows in order, by a clock of seconds. Where no records are kept, it keeps none."""

    def __init__(self, records: Records, clock: Callable[[], float]) -> None:
        self._records = records
        self._clock = clock
        self._waiting: list[Row] = []
        self._not_before = float("-inf")

    def add(self, row: Row) -> None:
        """Keep a row, now or as soon as that is possible."""
        if self._records.path is None:
            return
        self._waiting.append(row)
        if self._clock() >= self._not_before:
            self._offer()

    def close(self) -> int:
        """Try once more; how many rows are lost."""
        self._offer()
        return len(self._waiting)

    def _offer(self) -> None:
        if not self._waiting:
            return
        if self._records.merge(self._waiting) is None:
            self._not_before = self._clock() + AGAIN
        else:
            self._waiting.clear()
