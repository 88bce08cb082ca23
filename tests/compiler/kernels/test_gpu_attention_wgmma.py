"""Attention by groups of warps on Hopper GPUs, simulated and compared with float64; what it leaves
to others, and why; seeded mistakes are all caught."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.codegen.cuda.assemble import can_assemble, disassembly
from tilewright.compiler.codegen.cuda.frontend import lowered
from tilewright.compiler.codegen.cuda.intrinsics import INTRINSICS
from tilewright.compiler.codegen.cuda.ptx import kernel_ptx
from tilewright.compiler.codegen.cuda.source import Source, kernel_source
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.codegen.cuda.toolkit import part
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import GPU, gpu_device
from tilewright.compiler.kernels.gpu_attention_wgmma import GpuAttentionWgmma, shared_bytes
from tilewright.compiler.kernels.gpu_attention_wgmma_body import KEPT
from tilewright.compiler.kernels.gpu_templates import gpu_templates
from tilewright.compiler.kernels.gpu_wgmma import SHARED_BYTES
from tilewright.compiler.kernels.ir import Launch
from tilewright.compiler.kernels.select import RIVAL_MARGIN, preferred
from tilewright.compiler.kernels.template import Config
from tilewright.ops.types import f32, u16, u32

from ..codegen.cuda.divergence import undivided
from ..codegen.cuda.programs import simulated
from ..codegen.cuda.simulate import SimError
from ..codegen.cuda.test_hopper_code import checked, registers_behind
from .attentions import CASES, Build, Maker, expected, heads, made, rooted
from .mistakes import assert_caught
from .support import remembered

SMALL: Config = {"m": 64, "n": 32, "stages": 2}
ERRORS = {"f16": 2.0**-9, "bf16": 2.0**-6}
"""Of the largest result: roundings of factors, and of the result to its type."""
HOPPER = (9, 0)


def launched(graph: Graph, config: Config) -> Launch:
    template, given = GpuAttentionWgmma(), (graph, graph.ops, graph.outputs)
    assert not template.objection(*given)
    launch = template.instantiate(*given, GPU, config)
    return remembered(launch, template, graph, graph.outputs, GPU)


def is_close(got: Any, want: Any, kind: str = "f16") -> bool:
    if got.dtype.kind == "u":  # bf16, which numpy has not
        got = (got.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    known = ~np.isnan(want)
    limit = ERRORS[kind] * np.abs(want[known]).max()
    return bool((np.isnan(got) == ~known).all() and np.allclose(got[known], want[known], 0, limit))


def check(build: Build, config: Config, kind: str = "f16") -> None:
    graph, t = made(build, kind)
    assert is_close(simulated(graph, launched(graph, config), t.feeds), expected(graph, t), kind)


@pytest.mark.parametrize("name", ["whole", "wide", "shared", "constant", "hidden", "large"])
def test_half_floats(name: str) -> None:
    check(CASES[name], SMALL)


def _apart(t: Maker) -> Any:
    """Heads that share keys and lie in rows: their rows are no one walk through memory."""
    q = t.g.transpose(t.g.reshape(t.input(2, 9, 3 * 16), shape=(2, 9, 3, 16)), perm=(0, 2, 1, 3))
    return t.attend(q, t.input(2, 1, 21, 16), t.input(2, 1, 21, 16))


def _two_panels(t: Maker, keys: int = 100) -> Any:
    """Lines of more than 128 bytes, which fill neither box; two groups, the second one with few
    rows."""
    y = t.wide(t.attend(t.input(70, 80), t.input(keys, 80), t.input(keys, 72)))
    return t.g.relu(y + t.input(70, 72, kind=t.plain))


@pytest.mark.parametrize(("build", "config", "kind"), [
    (heads, SMALL, "bf16"),
    (_apart, SMALL, "f16"),
    (rooted, SMALL, "bf16"),
    (_two_panels, {"m": 128, "n": 32, "stages": 2}, "f16"),
    (_two_panels, {"m": 64, "n": 128, "stages": 3}, "bf16"),
])  # fmt: skip
def test_other_sizes(build: Build, config: Config, kind: str) -> None:
    check(build, config, kind)


# --------------------------------------------------------------------------- what is taken


@pytest.mark.parametrize(
    ("build", "kind", "why"),
    [
        (CASES["odd"], "f16", "steps of 26 bytes are no multiples of 16"),
        (CASES["one_row"], "f16", "it has one row"),
        (CASES["whole"], "f32", "operands of f32"),
        (lambda t: t.attend(t.input(16, 16), t.input(16, 40), t.input(40, 16), across=True), "f16",
         "elements of a key lie 40 apart, not side by side"),
        (lambda t: t.input(16, 16) @ t.input(16, 16), "f16", "it is no attention"),
    ],
    ids=["steps", "one row", "f32", "across", "a product"],
)  # fmt: skip
def test_what_it_leaves_to_others(build: Build, kind: str, why: str) -> None:
    graph, _ = made(build, kind)
    assert why in GpuAttentionWgmma().objection(graph, graph.ops, graph.outputs)


def long(rows: int, keys: int, width: int, count: int = 16) -> Graph:
    return made(lambda t: t.attend(*(t.input(2, count, n, width) for n in (rows, keys, keys))),
                "f16")[0]  # fmt: skip


@pytest.mark.parametrize("width", [16, 48, 64, 80, 128])
def test_every_width_has_configs_that_fit(width: int) -> None:
    graph = long(256, 256, width, 2)
    given, template = (graph, graph.ops, graph.outputs), GpuAttentionWgmma()
    space = template.space(*given, GPU)
    assert template.default(*given, GPU) in space and {c["m"] for c in space} == {64, 128}
    p = template._found(*given)
    for c in (space[0], space[-1]):
        (entry,) = kernel_source(template.instantiate(*given, GPU, c).kernel).entries
        assert shared_bytes(p, c) - 1024 < entry.shared_bytes <= shared_bytes(p, c) <= SHARED_BYTES


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [((2048, 2048, 64), "gpu_attention_wgmma"), ((2048, 2048, 128), "gpu_attention_wgmma"),
     ((512, 4096, 80), "gpu_attention_wgmma"), ((1, 2048, 64), "gpu_attention_mma")],
    ids=str,
)  # fmt: skip
def test_which_template_goes_first(sizes: tuple[int, int, int], chosen: str) -> None:
    """It does, but for what it does not take; and never where orders of sums must not depend on
    sizes."""
    graph, device = long(*sizes), gpu_device(HOPPER)
    given = graph, graph.ops, graph.outputs
    known = gpu_templates("standard", HOPPER)
    found, _ = preferred(*given, device, "standard", known)
    assert found is not None and found.name == chosen
    same = gpu_templates("reproducible", HOPPER)
    found, _ = preferred(*given, device, "reproducible", same)
    assert found is not None and found.name == "gpu_attention_mma"


def test_few_rows_are_left_to_smaller_tiles() -> None:
    """Where their estimate is clearly the better one."""
    graph, device = long(8, 16, 64, 2000), gpu_device(HOPPER)
    given = graph, graph.ops, graph.outputs
    found, why = preferred(*given, device, "standard", gpu_templates("standard", HOPPER))
    assert found is not None and found.name == "gpu_attention_mma"
    seconds = [float(x) for x in re.findall(r"wgmma (\S+) us.*mma (\S+) us", why)[0]]
    assert seconds[0] > RIVAL_MARGIN * seconds[1]


# --------------------------------------------------------------------------- instructions


def test_instructions_of_chains() -> None:
    """PTX ISA, "wgmma.mma_async": with the left operand in registers only the right one may be
    transposed. The first product of scores does not add; what is in flight goes through the wait.
    """
    rows, _ = INTRINSICS["wgmma_rows_f16"].definition(
        "f", {"sums": f32, "a": u16, "b": u16},
        {"terms": 96, "columns": 32, "a_apart": 128, "b_apart": 32})  # fmt: skip
    found = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n32k16\.f32\.f16\.f16 (.*?);", rows)
    assert len(found) == 6 and "wgmma.fence.sync.aligned;" in rows.split("mma_async")[0]
    assert [x.split("x, y, ")[1] for x in found] == ["0, 1, 1, 0, 0"] + 5 * ["1, 1, 1, 0, 0"]
    steps = re.findall(r"add\.s64 (\w), \$\d+, (\d+);", rows)
    assert [int(n) * 16 for name, n in steps if name == "x"] == [0, 32, 64, 96, 16384, 16416]
    assert [int(n) * 16 for name, n in steps if name == "y"] == [0, 32, 64, 96, 4096, 4128]
    assert '"' + ",".join(16 * ["=f"] + ["l", "l"]) in rows, "what sums held before is not kept"
    held, _ = INTRINSICS["wgmma_held_bf16"].definition(
        "f", {"sums": f32, "a": u32, "b": u16}, {"terms": 48, "columns": 16})  # fmt: skip
    found = re.findall(r"m64n16k16\.f32\.bf16\.bf16 \{(.*?)\}, \{(.*?)\}, y, 1, 1, 1, 1;", held)
    sums = ", ".join(f"${k}" for k in range(8))
    assert found == [(sums, ", ".join(f"${16 + 4 * k + j}" for j in range(4))) for k in range(3)]
    assert re.findall(r"add\.s64 y, \$28, (\d+);", held) == ["0", "128", "256"], "16 rows each"
    assert "wgmma.fence.sync.aligned;" in held.split("mma_async")[0]
    fixed = [int(n) for n in re.findall(r"or i64 %v\d+, (\d+)", held)]
    assert [(d >> 16 & 0x3FFF) * 16 for d in fixed] == [48 * 128], "of 64 columns"
    wait, _ = INTRINSICS["wgmma_wait_held"].definition(
        "f", {"sums": f32, "a": u32}, {"held": 8, "count": 12, "n": 0})  # fmt: skip
    assert '"' + ",".join([*8 * ["=f"], *12 * ["=r"], *map(str, range(20))]) in wait


# --------------------------------------------------------------------------- seeded mistakes

MISTAKES = (
    (r"\n    barrier\(\)", "\n    pass"),
    (r"mbarrier_init_fence\(\)", "pass"),
    (r"mbarrier_wait\([^\n]*", "pass"),  # nobody waits for copies, or for products
    (r"(mbarrier_wait\(\w+_ready, \d, )(\d)\)", r"\g<1>1 - \2)"),  # the other parity
    (r"(mbarrier_wait\((?:keys|values)_ready, umod[^\n]*, )(umod[^\n]*)\)", r"\g<1>1 - \2)"),
    (r"(mbarrier_wait\(\w+_free, [^\n]*) \* -1 \+ 1\)", r"\1)"),
    (r"mbarrier_wait\(values_ready", "mbarrier_wait(keys_ready"),
    (r"mbarrier_arrive\((\w+)_free, [^\n]*", "pass"),
    (r"mbarrier_arrive\(keys_free", "mbarrier_arrive(values_free"),
    (r"mbarrier_init\((\w+_free), (\w+), 4\)", r"mbarrier_init(\1, \2, 2)"),
    (r"mbarrier_init\((\w+_free), (\w+), 4\)", r"mbarrier_init(\1, \2, 5)"),
    (r"mbarrier_init\((\w+_ready), (\w+), 1\)", r"mbarrier_init(\1, \2, 2)"),
    (r"(mbarrier_expect\([^\n]*, )(\d+)\)", r"\1\2 // 2)"),
    (r"(mbarrier_expect\([^\n]*, )(\d+)\)", r"\1\2 * 2)"),
    (r"if lane == 0", "if lane <= 1"),
    (r"if thread == 128", "if thread <= 129"),
    (r"wgmma_wait\([^\n]*", "pass"),
    (r"wgmma_wait\(scores, (\d+), 0\)", r"wgmma_wait(scores, \1, 1)"),
    (r"wgmma_wait\(scores, (\d+), 1\)", r"wgmma_wait(scores, \1, 2)"),
    (r"wgmma_wait_held\([^\n]*", "pass"),
    (r"(wgmma_wait_held\([^\n]*), 0\)", r"\1, 1)"),
    (r"range\(unknown\((\d)\)\):(?=\n +mbarrier_wait)", r"range(unknown(\1 - 1)):"),
    (r"range\(1, unknown\((\d)\)\)", r"range(1, unknown(\1 - 1))"),
    (r"(v_\d+|umod\(round_2[^)]*\)|round_2) \* (1024|2048)\b", r"\1 * (\2 // 2)"),  # places overlap
    (r"round_2 \* 16(?=\))", "round_2 * 15"),
    (r"(_tiles, \w+, [^,]+(?:\([^)]*\))?, )0, ", r"\g<1>8, "),  # other terms
    (r"(wgmma_rows_f16\([^\n]*), 32, (\d+), 64, ", r"\1, 16, \2, 64, "),  # not all terms
    (r"(wgmma_rows_f16\(scores, )q, [^,]*", r"\1k, 0"),
    (r"(wgmma_held_f16\(sums, weights, )v", r"\1k"),
    (r"\n +pack_f16\([^\n]*", ""),
    (r"(\n +)sums\[v_\d+\] = sums\[v_\d+\] \* scales\[r\]", r"\1pass"),
    (r"sums\[v_\d+\] \* scales\[r\]", "sums[e + j * 4 + r * 2] * scale"),  # the other row's
    (r"(\n {16})scales\[r\] = scale", r"\1scales[r] = f32(1.0)"),
    (r"\n( +)(top|total)\[r\] = (?!f32)[^\n]*", r"\n\1pass"),
    (r" < 75", " < 76"),  # a key too many
    (r" < 19", " < 20"),  # a row too many
    (r" < 24", " < 32"),  # columns beyond the last
    (r"row = udiv\(thread, 32\) \* 16", "row = umod(thread, 32) * 16"),
    (r"fill\(sums, [^\n]*", "pass"),
    (r"(shared_f16\()([1-9]\d*), ", r"\g<1>0, "),  # operands overlap
)  # fmt: skip
OF_GROUPS = (
    (r"pack_f16\(weights, scores, 0, (\d), 8\)", r"pack_f16(weights, scores, 0, \1, 4)"),
    (r"group \* (\d+)", r"group * (\1 // 2)"),
    (r"group \* 4096", "0"),
    (r"group < 2", "group < 1"),
    (r"udiv\(thread, 128\)", "udiv(thread, 256)"),
    (r"mbarrier_init\((\w+_free), (\w+), 8\)", r"mbarrier_init(\1, \2, 4)"),
    (r"(wgmma_rows_f16\([^\n]*), 128, 32\)", r"\1, 64, 32)"),  # panels of queries
    (r"(wgmma_rows_f16\([^\n]*), 128, 32\)", r"\1, 128, 64)"),
    (r"(wgmma_held_f16\([^\n]*), 80\)", r"\1, 64)"),
    (r"(tma_load_2d\(\w, [^,]* \+ )\d+", r"\g<1>0"),  # panels overlap
    (r"(_tiles, \w+, [^,]+, )64, ", r"\g<1>0, "),
    (r" < 70\)", " < 71)"),
)  # fmt: skip


def _guarded(t: Maker) -> Any:
    """With a mask that hides a row's first round, or makes it or the last one count alone; five
    rounds, so that places are used again and again."""
    mask = np.zeros((19, 75))
    mask[2::3, :17] = -np.inf
    mask[0::3, 66:] = 60
    mask[1::6, :] = -200
    q, k, v = t.input(19, 24), t.input(75, 24), t.input(75, 24)
    return t.attend(q, k, v, t.input(19, 75, value=mask))


def _maps(source: Source) -> list[tuple[str, Source]]:
    """Descriptors of tensors that say something else."""
    (entry,) = source.entries
    found = []
    for k, t in enumerate(entry.tensor_maps):
        inner, lines, *others = t.dims
        for what, wrong in {
            "swizzle": replace(t, swizzle=0),
            "stride": replace(t, strides=(t.strides[0] + 16, *t.strides[1:])),
            "box": replace(t, box=(t.box[0], t.box[1] // 2, *t.box[2:])),
            "dims": replace(t, dims=(inner - 8, lines, *others)),
            "lines": replace(t, dims=(inner, lines - 1, *others)),
        }.items():
            maps = (*entry.tensor_maps[:k], wrong, *entry.tensor_maps[k + 1 :])
            changed = replace(entry, tensor_maps=maps)
            found.append((f"{what} of {t.name}", replace(source, entries=(changed,))))
    return found


def _right(build: Build, config: Config, orders: int) -> tuple[Source, Any]:
    """A kernel's source, and whether some source computes the same, in so many orders of threads
    and copies."""
    graph, t = made(build, "f16")
    want, launch = expected(graph, t), launched(graph, config)

    def right(of: Source) -> bool:
        try:
            return all(is_close(simulated(graph, launch, t.feeds, source=of, seed=seed), want)
                       for seed in range(orders))  # fmt: skip
        except (SimError, IndexError):
            return False

    return kernel_source(launch.kernel), right


ROUNDS: Config = {**SMALL, "n": 16}
GROUPS: Config = {"m": 128, "n": 32, "stages": 2}


@pytest.mark.parametrize(
    ("build", "config", "mistakes", "least", "orders"),
    [(_guarded, ROUNDS, MISTAKES[::2], 30, 6),
     pytest.param(_guarded, ROUNDS, MISTAKES, 80, 6, marks=pytest.mark.slow),
     pytest.param(partial(_two_panels, keys=88), GROUPS, OF_GROUPS, 15, 8, marks=pytest.mark.slow)],
    ids=["some of a block", "a block", "groups"],
)  # fmt: skip
def test_seeded_mistakes_are_caught(
    build: Build, config: Config, mistakes: Any, least: int, orders: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """By an error or by a wrong result."""
    source, right = _right(build, config, orders)
    assert_caught(source, mistakes, right, least, capsys)


def test_wrong_descriptors_are_caught(capsys: pytest.CaptureFixture[str]) -> None:
    source, right = _right(_guarded, ROUNDS, 2)
    assert right(source)
    wrong = _maps(source)
    survivors = [what for what, made in wrong if right(made)]
    with capsys.disabled():
        print(f" {len(wrong) - len(survivors)} of {len(wrong)} mistakes caught", end="")
    assert len(wrong) == 15 and not survivors


# --------------------------------------------------------------------------- machine code


def code_of(graph: Graph, config: Config | None = None) -> str:
    """Its text: everything is in registers, and no product waits for another one."""
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    template, given = GpuAttentionWgmma(), (graph, graph.ops, graph.outputs)
    target = CudaTarget("sm_90")
    launch = template.instantiate(*given, GPU, config or template.default(*given, GPU))
    source, params = kernel_source(launch.kernel), launch.kernel.params
    ptx = kernel_ptx(launch.kernel, source.entries, lowered(source, params, target), target)
    assert not undivided(ptx)
    groups = dict(launch.kernel.config)["m"] // 64
    assert f".reqntid {128 * (groups + 1)}" in ptx and f".minnctapersm {3 - groups}" in ptx
    if not (can_assemble() and part("nvdisasm")):
        pytest.skip("nvJitLink or nvdisasm is not there")
    return disassembly(checked(ptx).cubin)


def masked(rows: int, keys: int, width: int) -> Graph:
    def build(t: Maker) -> Any:
        q, k, v = (t.input(2, 4, n, width) for n in (rows, keys, keys))
        return t.attend(q, k, v, t.input(2, 1, rows, keys))

    return made(build, "f16")[0]


CODE = [pytest.param(*sizes, c, marks=() if sizes[2] == 128 and c is None else pytest.mark.slow)
        for sizes in ((2048, 2048, 128), (1000, 1000, 64), (1000, 1000, 80))
        for c in (None, {"m": 128, "n": 128, "stages": 2}, {"m": 64, "n": 128, "stages": 2},
                  {"m": 64, "n": 64, "stages": 2}, {"m": 128, "n": 64, "stages": 3})]  # fmt: skip


@pytest.mark.parametrize(("rows", "keys", "width", "config"), CODE)
def test_machine_code(rows: int, keys: int, width: int, config: Config | None) -> None:
    """Products of scores and of values come without a pause of their own, and the producer needs no
    more registers than it keeps."""
    machine = code_of(masked(rows, keys, width), config)
    for wanted in ("UTMALDG", "SYNCS.PHASECHK", "MUFU.EX2", "USETMAXREG"):
        assert wanted in machine
    if "USETMAXREG.DEALLOC" in machine:
        assert registers_behind(machine, "USETMAXREG.DEALLOC") <= KEPT
