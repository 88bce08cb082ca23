"""Workers that seem to have been at a candidate for a long time, so that tests need not wait until
one that hangs is too late, nor have limits that a busy machine takes others beyond."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import pytest

from tilewright.autotune import workers
from tilewright.autotune.board import Board, Post
from tilewright.autotune.workers import Limits

AGE = 1000.0
LOOKS = 10
LIMITS = Limits(start=200, prepare=200, build=210, run=220)
"""No step takes so long, however busy the machine is; who hangs has done so for longer."""


def age(patch: pytest.MonkeyPatch, those: Collection[tuple[str, int]]) -> None:
    """Have posts of these steps and places be AGE seconds old once they were read a few times."""
    read, seen = Board.read, Counter[Post]()

    def older(board: Board) -> Post | None:
        post = read(board)
        if post is None or (post.step, post.place) not in those:
            return post
        seen[post] += 1
        return replace(post, since=post.since - AGE) if seen[post] > LOOKS else post

    patch.setattr(Board, "read", older)
    patch.setattr(workers, "LOOK_SECONDS", 0.02)
    patch.setattr(workers, "LEAST_BUILD", LIMITS.build)
