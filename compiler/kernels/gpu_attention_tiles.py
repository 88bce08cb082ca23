"""Attention in float32 on the ordinary units of GPUs (see `gpu_attention_threads`)."""

from __future__ import annotations

from typing import Final

from ...ops.types import DType, f32
from ..graph.ir import Graph
from .device import Device
from .gpu_attention import (
    MOST_SHARED,
    ROUND_STEPS,
    WAITING,
    OneAttention,
    copied,
    joining,
    keys_of,
    moved,
)
from .gpu_attention_lines import pitch_of
from .gpu_attention_problem import Attention
from .gpu_attention_threads import ACROSS, COLUMNS, DOWN, PART, TERMS, WORD, ThreadAttend, parts_of
from .gpu_model import WARP, Work, chip_of, seconds
from .template import Config

ROWS: Final = ((8, 4, 1), (8, 2, 1), (4, 4, 1), (4, 2, 1), (2, 4, 1), (4, 1, 1), (2, 1, 1),
               (1, 1, 1), (2, 1, 4), (1, 1, 4), (1, 1, 2))  # fmt: skip
"""Rows of a thread, warps that share the keys, ways."""
KEYS: Final = (64, 32)
STAGES: Final = (1, 2)
MOST_KEPT: Final = 176
"""Registers of a thread for what stays in them; others it needs for addresses."""
OTHER_REGISTERS: Final = 40
REACHED: Final = 0.8  # of the peak, with all operands in registers: a guess
LOAD_COST: Final = 1.0
"""Multiply-adds of a thread that take as long as reading four elements, over four: a guess."""
SCORE_STEPS: Final = 28
"""Instructions for a score, beside those that do not depend on the tile."""


class GpuAttentionTiles(OneAttention):
    """Configs: `m` rows and `n` keys of a block's tile, `tm` rows of a thread, `ways` groups of
    warps that share the keys, `stages` of the ring, `parts` of the keys."""

    name = "gpu_attention_tiles"
    splits = True

    def types(self) -> tuple[DType, ...]:
        return (f32,)

    def registers(self, p: Attention, config: Config) -> int:
        return kept(p, config) + OTHER_REGISTERS

    def attend(self, graph: Graph, p: Attention, config: Config) -> ThreadAttend:
        return ThreadAttend(graph, p, config)

    def configs(self, p: Attention) -> list[Config]:
        found = [
            {"m": DOWN * tm * warps, "n": n, "tm": tm, "ways": ways, "stages": stages, "parts": 1}
            for tm, warps, ways in ROWS
            for n in KEYS
            for stages in STAGES
        ]
        return [c for c in found
                if kept(p, c) <= MOST_KEPT and shared_bytes(p, c) <= MOST_SHARED]  # fmt: skip

    def seconds(self, graph: Graph, p: Attention, config: Config, device: Device) -> float:
        chip, m, tm, parts = chip_of(device), config["m"], config["tm"], config["parts"]
        own, keys = config["n"] / config["ways"], keys_of(p, config)
        sides = ((p.depth, own / ACROSS), (p.width, min(p.width, PART) / ACROSS))
        products = sum(depth * (1 + LOAD_COST * (1 / tm + 1 / tn)) for depth, tn in sides)
        products += SCORE_STEPS + (p.width + ROUND_STEPS) / own
        return seconds(chip, Work(
            p.batch * -(-p.m // m) * parts, m // (DOWN * tm) * config["ways"] * WARP,
            self.registers(p, config), shared_bytes(p, config), "f32",
            m * keys * products, copied(p, m, keys), moved(graph, p),
            REACHED * (1 - WAITING / config["stages"]),
        )) + joining(chip, p, parts)  # fmt: skip


def kept(p: Attention, config: Config) -> int:
    """Registers of a thread for scores, results and what is multiplied."""
    tm, tn = config["tm"], config["n"] // config["ways"] // ACROSS
    parts = parts_of(p.width)
    return int(tm * (tn + sum(parts) // ACROSS + WORD) + WORD * max(tn, parts[0] // ACROSS))


def shared_bytes(p: Attention, config: Config) -> int:
    """Of a block: queries, the ring of keys and values, powers, what ways put together."""
    k, v = pitch_of(p.depth, f32, TERMS), pitch_of(p.width, f32, COLUMNS)
    m, n, ways = config["m"], config["n"], config["ways"]
    powers = m * ways * pitch_of(n // ways, f32, TERMS)
    shared = (ways - 1) * m * (sum(parts_of(p.width)) + 2 * ACROSS)
    return int((m * k + config["stages"] * n * (k + v) + powers + shared) * f32.bytes)
