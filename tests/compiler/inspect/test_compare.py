"""Comparing two runs: what is noise, and what is not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tilewright.compiler.errors import OptionError
from tilewright.compiler.inspect.compare import (
    APART,
    BLOCKS,
    TOGETHER,
    Change,
    LaunchTimes,
    Run,
    compare,
    read_run,
)

ROUNDS = 5 * BLOCKS


def noisy(seconds: float, seed: int, spread: float = 0.01) -> tuple[float, ...]:
    """Samples as those of a machine: a floor that the block decides, and disturbances on top."""
    rng = np.random.default_rng(seed)
    floors = np.repeat(1 + spread * rng.random(BLOCKS), ROUNDS // BLOCKS)
    return tuple(seconds * floors * (1 + rng.exponential(spread, ROUNDS)))


def run(*launches: tuple[str, tuple[str, ...], tuple[float, ...]], blocks: int = BLOCKS) -> Run:
    return Run("net", "cpu", 1, "standard", 1e11, tuple(LaunchTimes(*x) for x in launches), blocks)


def one(samples: tuple[float, ...], blocks: int = BLOCKS) -> Run:
    return run(("k", ("n",), samples), blocks=blocks)


def change(before: Run, now: Run, in_turns: bool = False) -> Change:
    (found,) = compare(before, now, in_turns=in_turns).parts
    return found


def test_the_same_code_shows_no_difference() -> None:
    for seed in range(50):
        a, b = one(noisy(1e-3, seed)), one(noisy(1e-3, seed + 1000))
        for in_turns in (False, True):
            assert change(a, b, in_turns).verdict == "no difference can be shown"


@pytest.mark.parametrize("in_turns", [False, True])
def test_what_is_faster_and_slower_is_said(in_turns: bool) -> None:
    a, b = one(noisy(1e-3, 1)), one(noisy(1.1e-3, 2))
    slower, faster = change(a, b, in_turns), change(b, a, in_turns)
    assert slower.verdict == "slower" and faster.verdict == "faster"
    assert slower.low < 1.1 < slower.high
    assert slower.low < slower.ratio < slower.high
    assert slower.ratio == pytest.approx(1 / faster.ratio)


def test_a_step_of_the_clock_is_no_difference() -> None:
    """Nor are many launches that are off by one each."""
    short, long = (1e-8,) * ROUNDS, (2e-8,) * ROUNDS
    for n in (1, 20):
        a = run(*((f"k{k}", ("n",), short) for k in range(n)))
        b = run(*((f"k{k}", ("n",), long) for k in range(n)))
        for c in (compare(a, b), compare(b, a), compare(a, b, in_turns=True)):
            assert {c.parts[0].verdict, c.whole.verdict} == {"no difference can be shown"}
    a, b = one((1e-7,) * ROUNDS), one((2e-7,) * ROUNDS)
    assert change(a, b).verdict == "slower" and change(b, a).verdict == "faster"


def test_a_difference_must_exceed_what_the_same_code_may_differ_by() -> None:
    even = (1e-3,) * ROUNDS
    for in_turns, margin in ((False, APART), (True, TOGETHER)):
        below = one(tuple(s * (1 + 0.9 * margin) for s in even))
        above = one(tuple(s * (1 + 1.1 * margin) for s in even))
        assert change(one(even), below, in_turns).verdict == "no difference can be shown"
        assert change(one(even), above, in_turns).verdict == "slower"


def test_one_lucky_block_is_enough_for_doubt() -> None:
    slow = list(noisy(1.2e-3, 3))
    slow[: ROUNDS // BLOCKS] = noisy(1e-3, 4)[: ROUNDS // BLOCKS]
    assert change(one(noisy(1e-3, 5)), one(tuple(slow))).verdict == "no difference can be shown"


def test_disturbed_rounds_do_not_count() -> None:
    """Whatever happens to four of five rounds of each block."""
    disturbed = [s * (1 if k % 5 == 2 else 3) for k, s in enumerate(noisy(1e-3, 6))]
    assert change(one(noisy(1e-3, 7)), one(tuple(disturbed))).verdict == (
        "no difference can be shown"
    )
    assert change(one(noisy(1.2e-3, 7)), one(tuple(disturbed))).verdict == "faster"


def test_few_blocks_show_nothing() -> None:
    a, b = one((1e-3,) * 3, 3), one((2e-3,) * 3, 3)
    found = compare(a, b)
    assert found.parts[0].verdict == found.whole.verdict == "no difference can be shown"
    assert "3 blocks are few" in "\n".join(found.remarks)
    assert change(one((1e-3,) * 4, 4), one((2e-3,) * 4, 4)).verdict == "slower"


def test_other_fusion_is_compared_by_the_nodes_of_both() -> None:
    before = run(("a", ("conv", "relu"), noisy(1e-3, 1)), ("b", ("pool",), noisy(2e-3, 2)),
                 ("old", ("gone",), noisy(1e-3, 3)), ("pack", (), noisy(1e-3, 4)))  # fmt: skip
    now = run(("c", ("conv",), noisy(1e-3, 5)), ("d", ("relu", "pool"), noisy(1e-3, 6)),
              ("new", ("fresh",), noisy(1e-3, 7)), ("pack", (), noisy(1e-3, 8)))  # fmt: skip
    found = compare(before, now)
    by_nodes = {c.nodes: c for c in found.parts}
    assert by_nodes.keys() == {("conv", "relu", "pool"), ("gone",), ("fresh",), ("pack",)}
    joined = by_nodes["conv", "relu", "pool"]
    assert joined.verdict == "faster" and joined.before == pytest.approx(3e-3, rel=0.05)
    assert by_nodes["gone",].verdict == "only before" and by_nodes["gone",].now is None
    assert by_nodes["fresh",].verdict == "only now"
    assert by_nodes["pack",].verdict == "no difference can be shown"
    assert found.whole.before == pytest.approx(5e-3, rel=0.05)
    text = str(found)
    assert "conv + relu + pool" in text and "1 of 4 parts: no difference can be shown" in text


def test_what_makes_runs_incomparable_is_remarked() -> None:
    a = one(noisy(1e-3, 1))
    assert compare(a, a).remarks == ()
    b = replace(a, model="other", device="gpu", threads=2, numerics="reduced", flops=0.5e11)
    said = "\n".join(compare(a, b).remarks)
    for words in ("model: net before, other now", "device: cpu", "threads: 1", "numerics",
                  "peak was 100 GFLOP/s"):  # fmt: skip
        assert words in said


def test_files_come_back_as_they_were() -> None:
    a = run(("a", ("x\x1b", "y"), (1e-3, 2.5e-6)), ("b", (), (1e-6, 1e-9)), blocks=2)
    assert read_run(json.dumps(a.as_json()), "f") == a
    assert "\x1b" not in str(compare(a, replace(a, launches=a.launches[1:])))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("[]", "no profile"), ("{}", "no profile"), ("not json", "no profile"),
        ('{"tilewright profile": 99}', "format 99"),
        ({"launches": 3}, "no profile"), ({"blocks": 0}, "blocks"), ({"blocks": 99}, "blocks"),
        ({"blocks": None}, "no profile"),
        ({"launches": [{"kernel": "k", "nodes": [], "nanoseconds": [-1.0]}]}, "times"),
        ({"launches": [{"kernel": "k", "nodes": [], "nanoseconds": []}]}, "samples"),
        ({"launches": [{"kernel": "k", "nodes": [], "nanoseconds": ["x"]}]}, "no profile"),
        ({"launches": [{"kernel": "k", "nodes": [], "nanoseconds": [1.0]},
                       {"kernel": "k", "nodes": [], "nanoseconds": [1.0, 2.0]}]}, "samples"),
    ],
)  # fmt: skip
def test_what_is_no_profile_is_refused_by_name(damage: str | dict, complaint: str) -> None:
    good = run(("k", ("n",), (1e-3,)), blocks=1).as_json()
    text = damage if isinstance(damage, str) else json.dumps(good | damage)
    with pytest.raises(OptionError, match=complaint) as e:
        read_run(text, "old.json")
    assert "old.json" in str(e.value)
