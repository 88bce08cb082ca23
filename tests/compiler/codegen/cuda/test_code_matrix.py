"""Every template for GPUs, with several configs and types, as machine code for every architecture:
nothing in local memory, the instructions that its description claims, and none that a warp has to
execute together where only a part of it is.

A quick part runs always; the whole matrix is slow.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda.assemble import assembled, can_assemble, disassembly
from tilewright.compiler.codegen.cuda.frontend import lowered
from tilewright.compiler.codegen.cuda.ptx import kernel_ptx
from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.codegen.cuda.toolkit import part
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import gpu_device
from tilewright.compiler.kernels.gpu_model import chip_of, occupancy
from tilewright.compiler.kernels.gpu_templates import gpu_templates
from tilewright.compiler.kernels.gpu_tiles import TILES
from tilewright.compiler.kernels.select import coded_groups
from tilewright.compiler.kernels.template import Config, KernelTemplate
from tilewright.compiler.options import Numerics
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import gpu_pipeline
from tilewright.compiler.tuning.problem import Problem, problem_of

from .divergence import undivided

pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
pytestmark = pytest.mark.skipif(
    not can_assemble() or part("nvdisasm") is None, reason="nvJitLink or nvdisasm is not there"
)
_INSTRUCTION = re.compile(r"^\s+(?:\{\s+)?(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", re.MULTILINE)
SPILLS = re.compile(r"LDL|STL")
_MOVED = re.compile(r"setmaxnreg\.(inc|dec)\.sync\.aligned\.u32 (\d+)")


@dataclass(frozen=True)
class Kind:
    """A group of operators, the template that computes it, and what its code must hold."""

    name: str
    template: str
    build: Callable[[Any], Any]
    claims: tuple[str, ...] = ()
    numerics: Numerics = "standard"
    arch: tuple[str, ...] = ("sm_80", "sm_89", "sm_90")

    @property
    def graph(self) -> Graph:
        g = tw.Graph("g")
        g.output(self.build(g), "y")
        return g.build()


def dense(kind: str, n: int = 1024, k: int = 512) -> Callable[[Any], Any]:
    """relu(x w' + b) + r."""

    def build(g: Any) -> Any:
        w = g.transpose(g.input("w", (n, k), kind), perm=(1, 0))
        y = g.relu(g.matmul(g.input("x", (2048, k), kind), w) + g.input("b", (n,), kind))
        return y + g.input("r", (2048, n), kind)

    return build


def product(m: int, n: int, k: int) -> Callable[[Any], Any]:
    """relu(x w) with constant weights, in half floats."""

    def build(g: Any) -> Any:
        w = g.constant(_zeros(k, n).astype(np.float16))
        return g.relu(g.matmul(g.input("x", (m, k), "f16"), w))

    return build


def small_images(g: Any) -> Any:
    w = g.constant(_zeros(256, 64, 3, 3).astype(np.float16))
    return g.relu(g.conv(g.input("x", (32, 64, 7, 7), "f16"), w, pads=1))


def few_places(g: Any) -> Any:
    """Whose sums are longer than its tiles are many."""
    w = g.constant(_zeros(512, 512, 3, 3).astype(np.float16))
    return g.relu(g.conv(g.input("x", (1, 512, 14, 14), "f16"), w, pads=1))


def groups(g: Any) -> Any:
    """Of channels that fill no box, in larger steps."""
    w = g.constant(_zeros(448, 112, 3, 3).astype(np.float16))
    x = g.input("x", (8, 448, 28, 28), "f16")
    return g.relu(g.conv(x, w, pads=1, strides=2, group=4))


def stored_bf16(g: Any) -> Any:
    w = g.transpose(g.input("w", (1024, 512), "bf16"), perm=(1, 0))
    return g.matmul(g.input("x", (2048, 512), "bf16"), w)


def conv(kind: str) -> Callable[[Any], Any]:
    def build(g: Any) -> Any:
        w = g.constant(_zeros(64, 64, 3, 3).astype(np.float16 if kind == "f16" else np.float32))
        return g.relu(g.conv(g.input("x", (8, 64, 56, 56), kind), w, pads=1))

    return build


def depthwise(g: Any) -> Any:
    w = g.constant(_zeros(32, 1, 3, 3))
    return g.conv(g.input("x", (1, 32, 56, 56)), w, group=32, pads=1)


def windows(kind: str, size: int, taps: int = 3, batch: int = 32, **window: Any) -> Any:
    """relu(depthwise(x) + b), whose channels are last, as behind a convolution."""

    def build(g: Any) -> Any:
        number = np.float16 if kind == "f16" else np.float32
        w, b = (g.constant(_zeros(*dims).astype(number)) for dims in ((96, 1, taps, taps), (96,)))
        x = g.relu(g.input("x", (batch, 96, size, size), kind))
        y = g.relu(g.conv(x, w, b, group=96, pads=taps // 2, **window))
        return g.max_pool(y, kernel_shape=2)  # not the caller's, who wants rows

    return build


def pool(kind: str) -> Callable[[Any], Any]:
    """Of 3 x 3 places, behind a convolution."""

    def build(g: Any) -> Any:
        w = g.constant(_zeros(64, 64, 1, 1).astype(np.float16))
        y = g.conv(g.input("x", (32, 64, 56, 56), "f16"), w)
        return g.max_pool(g.cast(y, to=kind), kernel_shape=3, strides=2, pads=1)

    return build


def attention(kind: str, rows: int = 1024, width: int = 64) -> Callable[[Any], Any]:
    """With a mask for all heads; whoever reads the result wants it row by row."""

    def build(g: Any) -> Any:
        q, k, v = (g.input(n, (2, 8, m, width), kind) for n, m in
                   (("q", rows), ("k", 1024), ("v", 1024)))  # fmt: skip
        scores = g.matmul(q, g.transpose(k, perm=(0, 1, 3, 2)))
        scores = scores if kind == "f16" else g.cast(scores, to="f32")
        mask = g.input("mask", (2, 1, rows, 1024), "f16" if kind == "f16" else "f32")
        weights = g.cast(g.softmax(scores + mask, axis=-1), to=kind)
        return g.reshape(g.transpose(g.matmul(weights, v), perm=(0, 2, 1, 3)),
                         shape=(2, rows, 8 * width))  # fmt: skip

    return build


def gru(g: Any) -> Any:
    w, r = (g.constant(_zeros(1, 300, n)) for n in (25, 100))
    return g.gru(g.input("x", (9, 1, 25)), w, r, hidden_size=100, linear_before_reset=1)[0]


def _zeros(*dims: int) -> Any:
    return np.zeros(dims, np.float32)


_WIDE = ("LDG.E.128", "STG.E.128")
_TILES = ("FFMA", "LDGSTS", "LDS.128", "STG.E.128")
_MMA = ("LDGSTS", "LDSM", "STG.E.128")
_ATTEND = ("LDGSTS", "LDSM.16.M88", "LDSM.16.MT88", "MUFU.EX2", "SHFL.BFLY")
_GROUPS = ("HGMMA", "UTMALDG", "SYNCS", "USETMAXREG", "MUFU.EX2", "F2FP")
_WGMMA = ("HGMMA", "UTMALDG", "SYNCS")
KINDS = (
    Kind("pointwise-f32", "gpu_nest", lambda g: g.relu(g.input("x", (64, 1024))), _WIDE),
    Kind("pointwise-f16", "gpu_nest", lambda g: g.relu(g.input("x", (64, 1024), "f16")), _WIDE),
    Kind("softmax", "gpu_nest", lambda g: g.softmax(g.input("x", (64, 1024)), axis=1), _WIDE),
    Kind("pool", "gpu_nest",
         lambda g: g.max_pool(g.input("x", (2, 32, 56, 56)), kernel_shape=3, strides=1, pads=1),
         ("STG.E.128",)),
    Kind("depthwise", "gpu_nest", depthwise, ("FFMA", *_WIDE)),
    Kind("depthwise-f32", "gpu_strips", windows("f32", 56), ("FFMA", *_WIDE)),
    Kind("depthwise-f32-one", "gpu_strips", windows("f32", 14, batch=1), ("FFMA", *_WIDE)),
    Kind("depthwise-f16", "gpu_strips", windows("f16", 56, batch=1), ("FFMA", *_WIDE)),
    Kind("depthwise-f16-strides", "gpu_strips", windows("f16", 56, strides=2), ("FFMA", *_WIDE)),
    Kind("depthwise-f32-large", "gpu_strips", windows("f32", 14, 7), ("FFMA", *_WIDE)),
    Kind("depthwise-f32-5x5", "gpu_strips", windows("f32", 28, 5), ("FFMA", *_WIDE)),
    Kind("depthwise-f16-5x5", "gpu_strips", windows("f16", 28, 5), ("FFMA", *_WIDE)),
    Kind("pool-f16", "gpu_strips", pool("f16"), _WIDE),
    Kind("pool-f32", "gpu_strips", pool("f32"), ("LDG.E.64", "STG.E.128")),  # it widens f16
    Kind("dense-f32", "gpu_tiles", dense("f32"), _TILES),
    Kind("conv-f32", "gpu_tiles", conv("f32"), _TILES),
    Kind("conv-f32", "gpu_winograd", conv("f32"), _TILES),
    Kind("dense-f16", "gpu_mma", dense("f16"), ("HMMA.16816.F32", *_MMA)),
    Kind("dense-bf16", "gpu_mma", stored_bf16, ("HMMA.16816.F32.BF16", *_MMA)),
    Kind("dense-tf32", "gpu_mma", dense("f32"), ("HMMA.1688.F32.TF32", *_MMA), "reduced"),
    Kind("conv-f16", "gpu_mma", conv("f16"), ("HMMA.16816.F32", *_MMA)),
    Kind("attention-f16", "gpu_attention_mma", attention("f16"), ("HMMA.16816.F32", *_ATTEND)),
    Kind("attention-bf16", "gpu_attention_mma", attention("bf16", width=128),
         ("HMMA.16816.F32.BF16", *_ATTEND)),
    Kind("attention-tf32", "gpu_attention_mma", attention("f32"),
         ("HMMA.1688.F32.TF32", "LDGSTS", "LDSM", "MUFU.EX2"), "reduced"),
    Kind("decoding-f16", "gpu_attention_mma", attention("f16", rows=1),
         ("HMMA.16816.F32", *_ATTEND)),
    Kind("attention-f32", "gpu_attention_tiles", attention("f32"), ("FFMA", "LDGSTS", "LDS.128")),
    Kind("attention-f32-wide", "gpu_attention_tiles", attention("f32", width=128),
         ("FFMA", "LDGSTS", "LDS.128")),
    Kind("decoding-f32", "gpu_attention_tiles", attention("f32", rows=1), ("FFMA", "LDGSTS")),
    Kind("long-f16", "gpu_mma", product(64, 64, 8192), ("HMMA.16816.F32", *_MMA)),
    Kind("rows-f16", "gpu_mma", product(3, 4096, 4096), ("HMMA.16816.F32", *_MMA)),
    Kind("images-f16", "gpu_wgmma", small_images, ("UTMASTG", *_WGMMA), arch=("sm_90",)),
    Kind("dense-f16", "gpu_wgmma", dense("f16"), ("UTMASTG", *_WGMMA), arch=("sm_90",)),
    Kind("long-f16", "gpu_wgmma", product(128, 1024, 4096), _WGMMA, arch=("sm_90",)),
    Kind("few-places-f16", "gpu_wgmma", few_places, _WGMMA, arch=("sm_90",)),
    Kind("groups-f16", "gpu_wgmma", groups, ("UTMASTG", *_WGMMA), arch=("sm_90",)),
    Kind("dense-bf16", "gpu_wgmma", stored_bf16, _WGMMA, arch=("sm_90",)),
    Kind("dense-tf32", "gpu_wgmma", dense("f32"), _WGMMA, "reduced", ("sm_90",)),
    Kind("attention-f16", "gpu_attention_wgmma", attention("f16"), _GROUPS, arch=("sm_90",)),
    Kind("attention-bf16", "gpu_attention_wgmma", attention("bf16", width=128), _GROUPS,
         arch=("sm_90",)),
    Kind("gru", "gpu_recurrent", gru, ("FFMA", "LDS.128")),
)  # fmt: skip
QUICK = {("dense-f16", "gpu_mma", "sm_80"), ("long-f16", "gpu_mma", "sm_90"),
         ("few-places-f16", "gpu_wgmma", "sm_90"),
         ("dense-f32", "gpu_tiles", "sm_89"), ("depthwise-f32", "gpu_strips", "sm_90"),
         ("attention-f16", "gpu_attention_mma", "sm_80"),
         ("attention-f32", "gpu_attention_tiles", "sm_90"),
         ("dense-f16", "gpu_wgmma", "sm_90"), ("attention-f16", "gpu_attention_wgmma", "sm_90"),
          ("softmax", "gpu_nest", "sm_90"),
         ("conv-f32", "gpu_winograd", "sm_90"),
         ("dense-tf32", "gpu_mma", "sm_89"), ("gru", "gpu_recurrent", "sm_80")}  # fmt: skip


def problem(kind: Kind, target: CudaTarget) -> tuple[Problem, KernelTemplate]:
    """The group of a graph that the template computes."""
    graph, _ = run_pipeline(gpu_pipeline(kind.numerics), kind.graph)
    device = gpu_device(target.capability)
    templates = {t.name: t for t in gpu_templates(kind.numerics, target.capability)}
    for group in coded_groups(graph):
        p = problem_of(graph, group.ops, group.outputs, device, kind.numerics)
        if templates[kind.template].matches(p.graph, p.ops, p.outputs):
            return p, templates[kind.template]
    raise AssertionError(f"{kind.template} takes nothing of {kind.name}")


def checked(kind: Kind, arch: str, config: Config | None = None) -> Counter[str]:
    """How often every instruction stands in the code of a config, the default one if none is given.
    What it takes fits on a multiprocessor, and nothing is in local memory."""
    target = CudaTarget(arch)
    p, template = problem(kind, target)
    given = p.graph, p.ops, p.outputs, p.device
    launch = template.instantiate(*given, config or template.default(*given))
    source = kernel_source(launch.kernel)
    params = launch.kernel.params
    ptx = kernel_ptx(launch.kernel, source.entries, lowered(source, params, target), target)
    assert not undivided(ptx)
    made = assembled(ptx, target)
    for e in source.entries:
        usage = made.usage[e.name]
        assert usage.local_bytes == 0, f"{launch.kernel.config}: {usage}"
        chip, shared = chip_of(p.device), e.shared_bytes + usage.shared_bytes
        fit = occupancy(chip, e.threads, usage.registers, shared)
        assert fit.blocks > 0, f"{launch.kernel.config}: {usage}, {fit}"
        assert occupancy(chip, e.threads, usage.registers, 0).blocks >= e.resident
    moved = {way: int(n) for way, n in _MOVED.findall(ptx)}
    if moved:  # a block begins with so many, and who asks for more than are left waits for ever
        first, group = source.entries[0], 128
        wanted = group * moved["dec"] + (first.threads - group) * moved["inc"]
        assert wanted <= first.threads * made.usage[first.name].registers
    found = Counter(_INSTRUCTION.findall(re.sub(r"/\*.*?\*/", "", disassembly(made.cubin))))
    assert not [i for i in found if SPILLS.match(i)]
    for claim in kind.claims:
        if config is not None and claim.startswith("STG"):
            continue  # small tiles of warps store what a thread holds
        if config is not None and config.get("parts", 1) > 1 and claim == "UTMASTG":
            continue  # sums of parts are not results yet
        assert any(i.startswith(claim) for i in found), f"{claim} is not in {sorted(found)}"
    return found


def cells() -> Iterator[Any]:
    for kind in KINDS:
        for arch in kind.arch:
            cell = kind.name, kind.template, arch
            slow = () if cell in QUICK else (pytest.mark.slow,)
            yield pytest.param(kind, arch, id="-".join(cell), marks=slow)


@pytest.mark.parametrize(("kind", "arch"), list(cells()))
def test_default_configs(kind: Kind, arch: str) -> None:
    checked(kind, arch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in KINDS if k.template != "gpu_nest"],
                         ids=lambda k: f"{k.name}-{k.template}")  # fmt: skip
def test_other_configs(kind: Kind) -> None:
    """Every ninth, and the last: those whose code needs local memory have no place in a space."""
    arch = kind.arch[-1]
    p, template = problem(kind, CudaTarget(arch))
    space = template.space(p.graph, p.ops, p.outputs, p.device)
    for config in {str(c): c for c in (*space[::9], space[-1])}.values():
        checked(kind, arch, config)


def epilogue(sides: str, what: str) -> Kind:
    """A product of operands that lie along the sum ("n" of the left one, "t" of the right one) or
    across it, and what follows on it."""

    def build(g: Any) -> Any:
        x, w = ((512, 2048), (2048, 512)), ((512, 1024), (1024, 512))
        left, right = (g.input(n, dims[s == along]) for n, dims, s, along in (
            ("x", x, sides[0], "n"), ("w", w, sides[1], "t")))  # fmt: skip
        left = left if sides[0] == "n" else g.transpose(left, perm=(1, 0))
        right = g.transpose(right, perm=(1, 0)) if sides[1] == "t" else right
        y = g.matmul(left, right) + g.input("b", (1024,))
        if what != "bias":
            y = getattr(g, what)(y) + g.input("r", (2048, 1024))
        return y

    return Kind(f"{sides}-{what}", "gpu_tiles", build, _TILES)


@pytest.mark.parametrize(
    ("kind", "arch"),
    [
        pytest.param(kind := epilogue(sides, what), arch, id=f"{kind.name}-{arch}",
                     marks=() if (sides, what, arch) == ("nn", "relu", "sm_90") else
                     (pytest.mark.slow,))
        for sides in ("nn", "nt", "tn", "tt") for what in ("bias", "relu", "gelu")
        for arch in ("sm_80", "sm_89", "sm_90")
    ],
)  # fmt: skip
def test_what_follows_on_a_product_spills_nothing(kind: Kind, arch: str) -> None:
    """In the tiles with the most sums of a thread, which are the defaults of large products."""
    for tile in TILES[:1] if arch != "sm_90" else TILES[:3:2]:
        checked(kind, arch, tile)


def test_every_template_of_its_own_is_here() -> None:
    """Those that are written for GPUs alone."""
    own = {t.name for t in gpu_templates("reduced", (9, 0)) if t.name.startswith("gpu_")}
    assert own - {"gpu_unpool"} == {k.template for k in KINDS}
    assert {(k.name, k.template, a) for k in KINDS for a in k.arch} >= QUICK
