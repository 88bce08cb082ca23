"""softmax(q k') v in one kernel on a GPU: what templates for it have in common.

What is computed so stands in `gpu_attention_problem`, how operands lie in shared memory in
`gpu_attention_lines`, the kernel in `gpu_attention_body`, how few rows are spread over a device in
`gpu_attention_parts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...ops.types import DType
from ..graph.ir import Graph, Op
from .device import Device
from .gpu_attention_body import Attend
from .gpu_attention_parts import COUNTS, at_once, scratch_bytes
from .gpu_attention_problem import Attention, attention_of
from .gpu_model import LATENCY, LAUNCH, Chip, chip_of
from .gpu_parts import rounds_of
from .ir import Launch
from .template import Config, falling, required

FAMILY: Final = "attention"
"""Of the templates for it, which are rivals."""
MOST_SHARED: Final = 99 << 10  # bytes that a block may have on every device from sm_80 on
MOST_KEYS: Final = 64
"""Of warps that share keys, where keys fall into parts: with more, registers run out."""
FIXED_KEYS: Final = 32
"""Of a round, where all configs are to give the same bits."""
WAITING: Final = 0.15  # of the time that copies are waited for with one stage: a guess
SPARE_REGISTERS: Final = 40
"""That ptxas may take beside those that a kernel is thought to need."""
ROUND_STEPS: Final = 16
"""Instructions of ordinary units for a row and a round, beside scaling its sums: a guess."""
IDLE: Final = 4  # blocks of a multiprocessor, with fewer of them keys may fall into parts
LEAST_ROUNDS: Final = 2  # of a part


class OneAttention:
    """What templates for attention have in common.

    one_order: whether all configs give the same bits. How often sums are scaled down depends on the
    keys of a round, which are then the same for all, and no keys fall into parts. splits: whether
    keys may do so otherwise, as `parts` of a config says.
    """

    name = ""
    version = 2
    family = FAMILY
    splits = False

    def __init__(self, one_order: bool = False) -> None:
        self.one_order = one_order

    def types(self) -> tuple[DType, ...]:
        """Of operands."""
        raise NotImplementedError

    def configs(self, p: Attention) -> list[Config]:
        """Those that fit into registers and shared memory, with all keys in one part."""
        raise NotImplementedError

    def seconds(self, graph: Graph, p: Attention, config: Config, device: Device) -> float:
        raise NotImplementedError

    def registers(self, p: Attention, config: Config) -> int:
        """Of a thread, about. The kernel asks for no fewer: left alone, ptxas takes few and keeps
        some values in local memory, for blocks side by side that other limits do not allow."""
        raise NotImplementedError

    def attend(self, graph: Graph, p: Attention, config: Config) -> Attend:
        raise NotImplementedError

    def _problem(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]
    ) -> Attention | None:  # fmt: skip
        p = attention_of(graph, ops, outputs)
        return p if p is not None and p.dtype in self.types() and self._space(p) else None

    def _space(self, p: Attention) -> list[Config]:
        """No tile is larger than what there is, but for the smallest."""
        found = self.configs(p)
        least = min((c["m"] for c in found), default=0)
        found = [c for c in found if (c["m"] < 2 * p.m or c["m"] == least)
                 and (c["n"] < 2 * p.n or c["n"] == FIXED_KEYS)]  # fmt: skip
        same = [c for c in found if c["n"] == FIXED_KEYS and c["ways"] == 1]
        return same if self.one_order else found

    def _all(self, p: Attention, device: Device) -> list[Config]:
        """Those tiles, and where rows alone would leave multiprocessors idle some of them with the
        keys in parts."""
        tiles = self._space(p)
        if self.one_order or not self.splits:
            return tiles
        most = IDLE * chip_of(device).multiprocessors
        found = []
        for c in tiles:
            rounds, blocks = -(-p.n // c["n"]), p.batch * -(-p.m // c["m"])
            if c["stages"] > 1 and c["n"] // c["ways"] <= MOST_KEYS:
                found += [{**c, "parts": k} for k in COUNTS
                          if k * blocks <= most and rounds_of(rounds, k)[1] == k
                          and rounds_of(rounds, k)[0] >= LEAST_ROUNDS]  # fmt: skip
        return [*tiles, *found]

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return self._problem(graph, ops, outputs) is not None

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        p = required(self._problem(graph, ops, outputs), self.name, ops)
        return self._all(p, device)

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        """The one that should take the least time, the first of equals."""
        p = required(self._problem(graph, ops, outputs), self.name, ops)
        return min(self._all(p, device), key=lambda c: self.seconds(graph, p, c, device))

    def lean(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        """Keys in fewer parts, or in one."""
        p = required(self._problem(graph, ops, outputs), self.name, ops)
        return falling((self.seconds(graph, p, c, device), scratch_bytes(p, c.get("parts", 1)), c)
                       for c in self._all(p, device))  # fmt: skip

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        """In seconds (see `gpu_model`)."""
        p = required(self._problem(graph, ops, outputs), self.name, ops)
        return self.seconds(graph, p, config, device)

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        p = required(self._problem(graph, ops, outputs), self.name, ops)
        return self.attend(graph, p, config).launch(
            self.name, self.version, self.registers(p, config) + SPARE_REGISTERS
        )


def moved(graph: Graph, p: Attention) -> int:
    """Bytes of the operands and the result, each once."""
    read = p.batch * (p.m * p.depth + p.n * (p.depth + p.width)) * p.dtype.bytes
    return read + p.batch * p.m * p.width * graph.type(p.out).dtype.bytes


def keys_of(p: Attention, config: Config) -> int:
    """Of a block, those of whole rounds."""
    n = config["n"]
    return int(rounds_of(-(-p.n // n), config["parts"])[0] * n)


def joining(chip: Chip, p: Attention, parts: int) -> float:
    """Seconds of the second phase, which puts parts of the keys together."""
    if parts == 1:
        return 0.0
    waits = 2 * parts / at_once(parts) * LATENCY
    return LAUNCH + waits + 2 * scratch_bytes(p, parts) / chip.cache


def copied(p: Attention, m: int, keys: int) -> int:
    """Bytes that a block reads: its queries, and so many keys and values."""
    return (m * p.depth + keys * (p.depth + p.width)) * p.dtype.bytes
