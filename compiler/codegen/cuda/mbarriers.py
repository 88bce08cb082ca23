"""Barriers in shared memory (mbarrier), barriers for some threads of a block, clusters of blocks,
and the fences that go with them: PTX ISA, "Parallel synchronization" and "Memory consistency".

An mbarrier counts arrivals, and bytes that asynchronous copies still owe it. When neither is left,
its phase ends and the next one begins. Phases are known by their parity: the first is 0, and
waiting for parity 1 of a new barrier waits for nothing.
"""

from __future__ import annotations

from typing import Final

from .asm import address, asm, word
from .intrinsic import Body, table
from .intrinsic import Intrinsic as I


def _init(b: Body) -> None:
    text = f"mbarrier.init.shared::cta.b64 [$0], {b.literals['count']};"
    asm(b, text, address(b, "bars", "i"))


def _init_fence(b: Body) -> None:
    asm(b, "fence.mbarrier_init.release.cluster;")


def _expect(b: Body) -> None:
    text = f"mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], {b.literals['bytes']};"
    asm(b, text, address(b, "bars", "i"))


def _arrive(b: Body) -> None:
    asm(b, "mbarrier.arrive.shared::cta.b64 _, [$0];", address(b, "bars", "i"))


def _arrive_at(b: Body) -> None:
    text = ("{ .reg .b32 there; mapa.shared::cluster.u32 there, $0, $1;"
            " mbarrier.arrive.shared::cluster.b64 _, [there]; }")  # fmt: skip
    asm(b, text, address(b, "bars", "i"), word(b, "rank"))


def _wait(b: Body) -> None:
    text = ("{ .reg .pred done; again_${:uid}:"
            " mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1;"
            " @!done bra again_${:uid}; }")  # fmt: skip
    asm(b, text, address(b, "bars", "i"), word(b, "parity"))


def _barrier_of(b: Body) -> None:
    asm(b, f"bar.sync $0, {b.literals['threads']};", word(b, "number"))


def _cluster_barrier(b: Body) -> None:
    asm(b, "barrier.cluster.arrive.release; barrier.cluster.wait.acquire;")


def _proxy_fence(b: Body) -> None:
    asm(b, "fence.proxy.async.shared::cta;")


TABLE: Final = table(
    I("mbarrier_init", "shared bars, index i, literal count", _init),
    I("mbarrier_init_fence", "", _init_fence),
    I("mbarrier_expect", "shared bars, index i, literal bytes", _expect),
    I("mbarrier_arrive", "shared bars, index i", _arrive),
    I("mbarrier_arrive_at", "shared bars, index i, index rank", _arrive_at),
    I("mbarrier_wait", "shared bars, index i, index parity", _wait),
    I("barrier_of", "index number, literal threads", _barrier_of),
    I("cluster_barrier", "", _cluster_barrier),
    I("proxy_fence", "", _proxy_fence),
)
"""mbarrier_init(bars, i, count): barrier bars[i] (u64) takes `count` arrivals a phase; by one
thread, and mbarrier_init_fence() ahead of the block's (cluster's) barrier behind that.
mbarrier_expect(bars, i, bytes): an arrival, and so many bytes more are to come.
mbarrier_arrive_at(bars, i, rank): at the same barrier of block `rank` of the cluster.
barrier_of(number, threads): so many threads, whole warps, have come to barrier `number`, 1 to 15,
of the block. cluster_barrier(): all threads of the cluster have. proxy_fence(): what the thread
wrote to shared memory is there for units that work asynchronously, as soon as they are told to
look."""
