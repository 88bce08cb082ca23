"""Attention on the tensor cores of GPUs from sm_80 on (see `gpu_attention_warps`)."""

from __future__ import annotations

from typing import Final

from ...ops.types import HALF, DType, f32
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
from .gpu_attention_warps import WarpAttend
from .gpu_model import WARP, Work, chip_of, seconds
from .template import Config

ROWS: Final = ((128, 32, 1), (128, 16, 1), (64, 32, 1), (64, 16, 1), (32, 16, 1), (32, 16, 2),
               (16, 16, 1), (16, 16, 2), (16, 16, 4))  # fmt: skip
"""m, wm, ways: rows of a block and of a warp, and groups of warps that share the keys."""
KEYS: Final = (128, 64, 32)
LEAST_KEYS: Final = 16  # of a warp
STAGES: Final = (1, 2, 3)
MOST_KEPT: Final = 168
"""Registers of a thread for what stays in them; others it needs for addresses and fragments."""
OTHER_REGISTERS: Final = 56
SYNCHRONOUS: Final = 0.65  # of the peak that mma.sync reaches: a guess, as in `gpu_mma`
SHARED_COST: Final = 0.5
"""Of a product's time, that reading the right operand for 16 rows adds to it: a guess."""
SCORE_STEPS: Final = 10
"""Instructions of ordinary units for a score, beside those that do not depend on the tile."""


class GpuAttentionMma(OneAttention):
    """Configs: `m` rows and `n` keys of a block's tile, `wm` rows of a warp, `ways` groups of warps
    that share the keys, `stages` of the ring, `held`: whether queries stay in registers, `parts` of
    the keys.

    tf32: whether products in float32 are computed so as well.
    """

    name = "gpu_attention_mma"
    splits = True

    def __init__(self, tf32: bool = False, one_order: bool = False) -> None:
        super().__init__(one_order)
        self.tf32 = tf32

    def types(self) -> tuple[DType, ...]:
        return (*HALF, f32) if self.tf32 else HALF

    def registers(self, p: Attention, config: Config) -> int:
        return kept(p, config) + OTHER_REGISTERS

    def attend(self, graph: Graph, p: Attention, config: Config) -> WarpAttend:
        return WarpAttend(graph, p, config)

    def configs(self, p: Attention) -> list[Config]:
        found = [
            {"m": m, "n": n, "wm": wm, "ways": ways, "stages": stages, "held": held,
             "parts": 1}
            for m, wm, ways in ROWS for n in KEYS for stages in STAGES for held in (1, 0)
            if n // ways >= LEAST_KEYS
        ]  # fmt: skip
        return [c for c in found
                if kept(p, c) <= MOST_KEPT and shared_bytes(p, c) <= MOST_SHARED]  # fmt: skip

    def seconds(self, graph: Graph, p: Attention, config: Config, device: Device) -> float:
        chip, m, parts, keys = chip_of(device), config["m"], config["parts"], keys_of(p, config)
        kind = "tf32" if p.dtype is f32 else "half"
        tall, own = config["wm"] / 16, config["n"] / config["ways"]  # rows and keys of a warp
        products = (p.depth + p.width) * (1 + SHARED_COST / tall)
        products += 0 if config["held"] else SHARED_COST * 32 / own * p.depth
        steps = SCORE_STEPS + (p.width + ROUND_STEPS) / own
        beside = steps / chip.rates["f32"] * chip.rates[kind] * SYNCHRONOUS
        return seconds(chip, Work(
            p.batch * -(-p.m // m) * parts, m // config["wm"] * config["ways"] * WARP,
            self.registers(p, config), shared_bytes(p, config), kind,
            m * keys * (products + beside), copied(p, m, keys), moved(graph, p),
            SYNCHRONOUS * (1 - WAITING / config["stages"]),
        )) + joining(chip, p, parts)  # fmt: skip


def _whole(count: int, dtype: DType) -> int:
    """Elements of a line in shared memory."""
    step = 32 // dtype.bytes
    return -(-count // step) * step


def kept(p: Attention, config: Config) -> int:
    """Registers of a thread for scores, results, queries and the fragments at hand."""
    depth, width = _whole(p.depth, p.dtype), _whole(p.width, p.dtype)
    tall, wide = config["wm"] // 16, config["n"] // config["ways"] // 8
    deep = width // 8
    held = tall * (depth * p.dtype.bytes // 32) * 4 if config["held"] else 4 * tall
    return int(4 * tall * (wide + deep) + held + 4 * tall + 2 * min(max(wide, deep), 8))


def shared_bytes(p: Attention, config: Config) -> int:
    """Of a block: queries, the ring of keys and values, what ways put together."""
    k, v = pitch_of(p.depth, p.dtype), pitch_of(p.width, p.dtype)
    m, ring = config["m"], config["stages"] * config["n"]
    shared = (config["ways"] - 1) * m * (_whole(p.width, p.dtype) + 8)
    return int((m * k + ring * (k + v)) * p.dtype.bytes + shared * f32.bytes)
