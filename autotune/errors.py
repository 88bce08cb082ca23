"""The one error that the tuner raises."""

from __future__ import annotations


class TunerError(ValueError):
    """A task, a record or a request makes no sense; says why, the caller adds where."""
