"""The errors that the tuner raises."""

from __future__ import annotations


class TunerError(ValueError):
    """A task, a record or a request makes no sense; says why, the caller adds where."""


class RunnerLost(Exception):
    """A runner is gone for good: its machine, its connection. What it had begun goes to others."""
