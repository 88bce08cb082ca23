"""Winners of near problems as places to begin, and what unlike means."""

from __future__ import annotations

import numpy as np

from tilewright.autotune.alike import unlikeness
from tilewright.autotune.task import Candidate, Task
from tilewright.autotune.transfer import starts

from .made import candidate, made


def test_unlikeness_counts_fields() -> None:
    configs = [{"n": 4, "w": "a"}, {"n": 4, "w": "b"}, {"n": 64, "w": "a"}, {"n": 5, "w": "a"},
               {"n": 4}]  # fmt: skip
    apart = unlikeness(configs)
    assert (apart == apart.T).all() and not np.diag(apart).any()
    assert apart[0, 1] == 1 and apart[0, 2] == 1 and 0.5 < apart[0, 3] < 0.7
    assert apart[0, 4] == 1 and apart[1, 2] == 2
    assert unlikeness([{"n": 1}, {"n": True}])[0, 1] == 1


def task() -> Task:
    configs = [{"n": n, "w": w} for n in (2, 4, 8) for w in ("a", "b")]
    return made([1.0] * 6, (3, 3, 2, 2, 1, 1), configs).task


def test_winners_that_the_space_has_come_in_their_order() -> None:
    assert starts(task(), [candidate(n=8, w="b"), candidate(n=2, w="a")]) == [5, 0]
    assert starts(task(), [candidate(n=8, w="b")] * 2) == [5]


def test_others_stand_for_what_is_like_them() -> None:
    assert starts(task(), [candidate(n=7, w="a")]) == [4]
    assert starts(task(), [candidate(n=3, w="b")]) in ([1], [3])
    assert starts(task(), [candidate(n=4, w="c")]) == [2]  # of two alike, the better estimate
    assert starts(task(), [candidate(n=1024, w="b"), candidate(n=8, w="b")]) == [5]


def test_other_templates_and_versions_are_left_out() -> None:
    assert starts(task(), [candidate("other", n=8, w="b"), Candidate("t", 2, {"n": 8})]) == []
