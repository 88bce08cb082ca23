"""What divides a warp is found in PTX, and nothing else."""

from __future__ import annotations

import pytest

from .divergence import undivided

MEETING = "bar.sync 0;"


def kernel(body: str) -> str:
    return f".visible .entry k(\n.param .u64 x\n)\n.reqntid 128\n{{\n{body}\n}}\n"


def around(setup: str, inside: str, behind: str = "", predicate: str = "%p1") -> str:
    """Some threads skip `inside`."""
    return kernel(
        f"mov.u32 \t%r1, %tid.x;\n{setup}\n@{predicate} bra \t$L2;\n{inside}\n$L2:\n{behind}\nret;"
    )


NUMBER = "setp.eq.b32 \t%p1, %r1, 0;"
WARP = "shr.u32 \t%r2, %r1, 5;\nsetp.eq.b32 \t%p1, %r2, 0;"
HALF = "setp.lt.u32 \t%p1, %r1, 64;"
PART = "setp.lt.u32 \t%p1, %r1, 48;"
BROADCAST = "shfl.sync.idx.b32 \t%r2, %r1, 0, 31, -1;\nsetp.eq.b32 \t%p1, %r2, 0;"
READ = "ld.shared.b32 \t%r2, [%r1];\nsetp.eq.b32 \t%p1, %r2, 0;"
BLOCK = "mov.u32 \t%r2, %ctaid.x;\nsetp.eq.b32 \t%p1, %r2, 0;"


@pytest.mark.parametrize("setup", [NUMBER, PART, READ])
def test_some_threads_of_a_warp_come_to_a_barrier(setup: str) -> None:
    assert len(undivided(around(setup, MEETING))) == 1
    assert not undivided(around(setup, "add.s32 \t%r3, %r1, 1;", MEETING))


@pytest.mark.parametrize("setup", [WARP, HALF, BROADCAST, BLOCK])
def test_whole_warps_come_to_a_barrier(setup: str) -> None:
    assert not undivided(around(setup, MEETING))


def test_a_copied_barrier() -> None:
    """As call site splitting leaves it: both arms have one of their own."""
    both = around(NUMBER, "bar.sync 0;\nbra.uni \t$L3;", "bar.sync 0;\n$L3:")
    assert len(undivided(both)) == 2


def test_values_of_both_arms_differ() -> None:
    """%r5 is 0 or 1 by the thread, though both are constants."""
    text = around("mov.b32 \t%r5, 0;\n" + NUMBER, "mov.b32 \t%r5, 1;",
                  f"setp.eq.b32 \t%p2, %r5, 0;\n@%p2 bra \t$L4;\n{MEETING}\n$L4:")  # fmt: skip
    assert len(undivided(text)) == 1


LOOP = """mov.u32 \t%r1, %tid.x;
mov.b32 \t%r2, 0;
$L1:
add.s32 \t%r2, %r2, 1;
add.s32 \t%r4, %r2, 7;
{inside}
setp.lt.s32 \t%p1, %r2, {limit};
@%p1 bra \t$L1;
setp.eq.s32 \t%p2, %r4, 9;
@%p2 bra \t$L2;
{behind}
$L2:
ret;"""


def test_rounds_of_a_loop() -> None:
    """As many as the thread's number says, or the same for all."""
    assert undivided(kernel(LOOP.format(inside=MEETING, limit="%r1", behind="")))
    assert undivided(kernel(LOOP.format(inside="", limit="%r1", behind=MEETING))), "left at %r4 = 9"
    assert not undivided(kernel(LOOP.format(inside=MEETING, limit="9", behind=MEETING)))


def test_inline_ptx_is_one_instruction() -> None:
    """A loop in it that waits for a barrier ends for all threads alike."""
    wait = ("// begin inline asm\n"
            "{ again: mbarrier.try_wait.parity.b64 p, [%r1], 0; @!p bra again; }\n"
            "// end inline asm\n")  # fmt: skip
    assert not undivided(kernel(f"mov.u32 \t%r1, %tid.x;\n{wait}{MEETING}\nret;"))
    number = "// begin inline asm\nbar.sync %r2, 64;\n// end inline asm"
    text = around("shr.u32 \t%r2, %r1, 6;\nsetp.eq.b32 \t%p1, %r2, 0;", number, number)
    assert not undivided(text), "a barrier's number is read"
    inside = "// begin inline asm\nwgmma.fence.sync.aligned;\n// end inline asm"
    assert len(undivided(around(NUMBER, inside))) == 1


def test_a_register_that_others_use_for_something_else() -> None:
    """%r5 is set in the arm of one thread; whole warps set it anew before they read it."""
    anew = "mov.b32 \t%r5, 3;"
    met = f"setp.eq.b32 \t%p2, %r5, 0;\n@%p2 bra \t$L4;\n{MEETING}\n$L4:"
    text = around("mov.b32 \t%r5, 0;\n" + NUMBER, "mov.b32 \t%r5, 1;", f"{anew}\n{met}")
    assert not undivided(text)
    assert undivided(text.replace(anew, ""))
