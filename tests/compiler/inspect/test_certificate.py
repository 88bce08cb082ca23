"""What the decisions of a whole compilation save, by hand, and what it is without them."""

from __future__ import annotations

import numpy as np

import tilewright as tw
from tilewright.compiler.memory.plan import Lever

KIB = 1024


def branches() -> tw.Graph:
    """Three branches, each best summed up before the next one begins: two softmaxes of 16 KiB, and
    a concatenation of two more. Sums take 256 bytes."""
    g = tw.Graph("net")
    x = g.input("x", (64, 64))
    w = g.parameter("w", np.arange(64, dtype=np.float32))
    a, b, c, d = (g.softmax(y, axis=-1) for y in (x, x * w, x - w, x + w))
    sums = [g.reduce_sum(g.softmax(y, axis=0), axes=(0,)) for y in (a, b)]
    sums.append(g.reduce_sum(g.exp(g.concat(c, d, axis=0)), axes=(0,)))
    g.output(g.softmax(sums[0] * sums[1] * sums[2], axis=-1), "y")
    return g


def levers(exe: tw.Executable) -> dict[str, Lever]:
    return {lever.name: lever for lever in exe.plan.levers()}


def test_what_the_decisions_of_a_program_save() -> None:
    exe = tw.compile(branches(), threads=1)
    found = levers(exe)
    bound = exe.plan.lower_bound_bytes
    assert 32 * KIB <= bound <= 33 * KIB, "the concatenation, and sums"
    # all softmaxes at once, as the graph has them, are 64 KiB
    assert 64 * KIB <= found["reordering"].without <= 65 * KIB
    # a copied concatenation, and its parts
    assert 64 * KIB <= found["views"].without <= 65 * KIB
    assert found["views"].avoided == 32 * KIB
    # exponentials beside the sum that they are divided by later
    assert found["fusion"].without > bound
    assert found["fusion"].avoided > 10 * 16 * KIB
    for lever in found.values():
        assert lever.saved == lever.without - (
            exe.plan.arena_bytes if lever.name == "sharing" else bound
        )


def test_what_if() -> None:
    """The same results, and the memory that the certificate foretold."""
    x = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    exe = tw.compile(branches(), threads=1)
    want, foretold = exe(x), levers(exe)
    other = tw.compile(branches(), threads=1, reorder=False)
    assert other.plan.lower_bound_bytes == foretold["reordering"].without > exe.plan.arena_bytes
    assert other.plan.order == tuple(range(len(other.plan.steps)))
    np.testing.assert_array_equal(other(x), want)
    other = tw.compile(branches(), threads=1, inplace=False)
    assert not other.plan.inplace and exe.plan.inplace
    assert other.plan.lower_bound_bytes <= foretold["in place"].without
    np.testing.assert_array_equal(other(x), want)


def test_alternatives_follow_the_options() -> None:
    """What an unfused program needs, where results may not take the place of operands."""
    g = tw.Graph("net")
    h = g.exp(g.input("x", (64, 64))) + 1.0
    g.output(g.reduce_sum(h * h, axes=(0, 1)), "y")
    assert levers(tw.compile(g, threads=1))["fusion"].without == 16 * KIB
    assert levers(tw.compile(g, threads=1, inplace=False))["fusion"].without == 32 * KIB


def test_printing_has_it_all() -> None:
    exe = tw.compile(branches(), threads=1)
    text = exe.ir("memory")
    for part in (exe.plan.certificate(), str(exe.memory_use()), exe.plan.blocks()):
        assert part in text
    assert str(exe.plan) == f"{exe.plan.certificate()}\n{exe.plan.blocks()}"
