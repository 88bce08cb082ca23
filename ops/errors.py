"""The one error that operator declarations raise."""

from __future__ import annotations


class OperatorError(ValueError):
    """Inputs or attributes of an operator do not fit; says why, the caller adds where."""
