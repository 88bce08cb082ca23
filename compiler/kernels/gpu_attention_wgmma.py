"""Attention on the tensor cores of Hopper GPUs (wgmma), whose operands a unit of its own copies
(TMA): see `gpu_attention_wgmma_body`.

It takes half floats that lie so that boxes of them can be copied (`gpu_attention_boxes`): elements
of a query, key or value side by side, all else in steps of multiples of 16 bytes. Sizes need not be
multiples of tiles. What it leaves to others, `objection` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...ops.types import HALF, DType
from ..graph.ir import Graph, Op
from .device import Device
from .gpu_attention import ROUND_STEPS, WAITING, OneAttention, moved
from .gpu_attention_boxes import operands_of
from .gpu_attention_mma import SCORE_STEPS
from .gpu_attention_problem import Attention, attention_of
from .gpu_attention_wgmma_body import GroupAttend, begun_with, taken
from .gpu_contraction import Unfit, objection
from .gpu_model import Work, chip_of, seconds
from .gpu_wgmma import EFFICIENCY, RESERVE, SHARED_BYTES
from .gpu_wgmma_shape import GROUP, TILE
from .ir import Launch
from .pieces import Buffers
from .template import Config, required

ROWS: Final = (128, 64)
KEYS: Final = (128, 64, 192, 32)
STAGES: Final = (2, 3, 4)
ROW: Final = 64  # elements of 128 bytes
OTHER_REGISTERS: Final = 40
"""Of a thread, for addresses and masks, beside those for scores, powers and sums."""
TURNS: Final = 0.4
"""Of what takes less time, products or powers, that is not hidden behind the other: a guess."""


class GpuAttentionWgmma(OneAttention):
    """Configs: `m` rows and `n` keys of a block's tile, `stages` of the ring. There is no canonical
    order of sums: it is not for where results are to be reproducible."""

    name = "gpu_attention_wgmma"

    def types(self) -> tuple[DType, ...]:
        return HALF

    def objection(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> str:
        """Why it does not take a group, "" where it does."""
        return objection(lambda: self._found(graph, ops, outputs))

    def _problem(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]
    ) -> Attention | None:  # fmt: skip
        try:
            return self._found(graph, ops, outputs)
        except Unfit:
            return None

    def _found(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> Attention:
        """Raises Unfit."""
        p = attention_of(graph, ops, outputs)
        if p is None:
            raise Unfit("it is no attention")
        p = operands_of(graph, p, Buffers(graph)).p
        if not self._space(p):
            raise Unfit("no tile fits in shared memory and registers")
        return p

    def _space(self, p: Attention) -> list[Config]:
        """No tile is larger than what there is, but for the smallest."""
        return [c for c in self.configs(p) if (c["m"] < 2 * p.m or c["m"] == min(ROWS))
                and (c["n"] < 2 * p.n or c["n"] == min(KEYS))]  # fmt: skip

    def configs(self, p: Attention) -> list[Config]:
        found = [{"m": m, "n": n, "stages": s} for m in ROWS for n in KEYS for s in STAGES]
        return [c for c in found
                if kept(p, c) + OTHER_REGISTERS <= taken(c["m"] // TILE)
                and shared_bytes(p, c) <= SHARED_BYTES]  # fmt: skip

    def registers(self, p: Attention, config: Config) -> int:
        """When a block begins, which is what it takes of a multiprocessor."""
        return begun_with(config["m"] // TILE)

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        p = required(self._problem(graph, ops, outputs), self.name, ops)
        made = self.attend(graph, p, config)
        return made.launch(self.name, self.version, self.registers(p, config))

    def attend(self, graph: Graph, p: Attention, config: Config) -> GroupAttend:
        buffers = Buffers(graph)
        return GroupAttend(graph, operands_of(graph, p, buffers), config, buffers)

    def seconds(self, graph: Graph, p: Attention, config: Config, device: Device) -> float:
        """Groups, and blocks of a multiprocessor, take turns: products of one are computed while
        another one raises powers."""
        chip, m, n = chip_of(device), config["m"], config["n"]
        keys = -(-p.n // n) * n
        products = p.depth + p.width
        steps = SCORE_STEPS + (p.width + ROUND_STEPS) / n
        beside = steps / chip.rates["f32"] * chip.rates["half"] * EFFICIENCY
        each = max(products, beside) + TURNS * min(products, beside)
        copied = (m * p.depth + keys * (p.depth + p.width)) * p.dtype.bytes
        return seconds(chip, Work(
            p.batch * -(-p.m // m), (m // TILE + 1) * GROUP, self.registers(p, config),
            shared_bytes(p, config), "half", m * keys * each, copied, moved(graph, p),
            EFFICIENCY * (1 - WAITING * min(KEYS) / (config["stages"] * n)), keys // n,
            config["stages"] - 1,
        ))  # fmt: skip


def kept(p: Attention, config: Config) -> int:
    """Registers of a thread for scores, powers, sums, and what is known of its two rows."""
    return int(config["n"] // 2 + config["n"] // 4 + -(-p.width // 16) * 8 + 8)


def shared_bytes(p: Attention, config: Config) -> int:
    """Of a block: queries, and rings of keys and values, in lines of 128 bytes; and barriers."""
    depth, width = (-(-x // ROW) for x in (p.depth, p.width))
    lines = config["m"] * depth + config["stages"] * config["n"] * (depth + width)
    return int(lines * ROW * p.dtype.bytes + RESERVE)
