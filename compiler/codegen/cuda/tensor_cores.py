"""Warp-wide matrix instructions."""

from __future__ import annotations

from typing import Final

from .intrinsic import table

TABLE: Final = table()
