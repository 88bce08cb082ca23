"""Attention in one kernel, simulated and compared with float64, and what it leaves to others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.compiler.codegen.cuda.source import Source, kernel_source
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels import gpu_attention_mma, gpu_attention_tiles
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_attention import MOST_SHARED, OneAttention
from tilewright.compiler.kernels.gpu_attention_mma import GpuAttentionMma
from tilewright.compiler.kernels.gpu_attention_parts import scratch_bytes
from tilewright.compiler.kernels.gpu_attention_problem import attention_of
from tilewright.compiler.kernels.gpu_attention_tiles import GpuAttentionTiles
from tilewright.compiler.kernels.ir import Launch
from tilewright.compiler.kernels.template import Config
from tilewright.compiler.options import Numerics
from tilewright.ops.operator import Contraction

from ..codegen.cuda.programs import gpu_launches, simulated
from ..codegen.cuda.simulate import SimError
from .attentions import CASES, Build, Maker, expected, heads, made, rooted
from .mistakes import assert_caught
from .support import remembered

SMALL: Config = {"m": 16, "n": 32, "wm": 16, "ways": 1, "stages": 2, "held": 1, "parts": 1}
TALL: Config = {"m": 64, "n": 32, "wm": 32, "ways": 1, "stages": 3, "held": 0, "parts": 1}
SPLIT: Config = {"m": 16, "n": 64, "wm": 16, "ways": 4, "stages": 2, "held": 1, "parts": 1}
THREADS: Config = {"m": 16, "n": 32, "tm": 2, "ways": 1, "stages": 2, "parts": 1}
KINDS = {"f16": 2.0**-9, "bf16": 2.0**-6, "tf32": 2.0**-9, "f32": 1e-5}
"""Errors, of the largest result: roundings of factors, and of the result to its type."""


def numerics_of(kind: str) -> Numerics:
    return "reduced" if kind == "tf32" else "standard"


def template_of(kind: str, one_order: bool = False) -> OneAttention:
    if kind == "f32":
        return GpuAttentionTiles(one_order)
    return GpuAttentionMma(kind == "tf32", one_order)


def graph_of(build: Build, kind: str, numerics: Numerics | None = None) -> tuple[Graph, Maker]:
    return made(build, kind.replace("tf32", "f32"), numerics or numerics_of(kind))


def launched(graph: Graph, config: Config, kind: str) -> Launch:
    template = template_of(kind)
    given = graph, graph.ops, graph.outputs
    assert template.matches(*given)
    launch = template.instantiate(*given, GPU, config)
    return remembered(launch, template, graph, graph.outputs, GPU)


def check(build: Build, kind: str, config: Config) -> None:
    graph, t = graph_of(build, kind)
    got = simulated(graph, launched(graph, config, kind), t.feeds)
    want = expected(graph, t)
    if graph.type("y").dtype.name == "bf16":
        got = (got.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    known = ~np.isnan(want)
    limit = KINDS[kind] * np.abs(want[known]).max()
    np.testing.assert_allclose(got[known], want[known], 0, limit)


@pytest.mark.parametrize("name", CASES)
def test_half_floats(name: str) -> None:
    check(CASES[name], "f16", SMALL)


@pytest.mark.parametrize("name", CASES)
def test_single_floats(name: str) -> None:
    check(CASES[name], "f32", THREADS)


@pytest.mark.parametrize("kind", ["bf16", "tf32"])
@pytest.mark.parametrize("name", ["heads", "odd", "hidden"])
def test_other_types(name: str, kind: str) -> None:
    check(CASES[name], kind, SMALL)


@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
@pytest.mark.parametrize(
    "config",
    [
        TALL,
        SPLIT,
        {**TALL, "wm": 16, "held": 1, "n": 64},
        {**SPLIT, "ways": 2, "n": 32, "m": 32, "stages": 3},
    ],
    ids=str,
)
def test_configs(config: Config, kind: str) -> None:
    check(CASES["heads" if config["m"] > 16 else "one_row"], kind, config)


@pytest.mark.parametrize(
    ("name", "config"),
    [("wide", {"m": 32, "n": 32, "tm": 4, "ways": 1, "stages": 3, "parts": 1}),
     ("heads", {"m": 32, "n": 64, "tm": 8, "ways": 1, "stages": 2, "parts": 1}),
     ("one_row", {"m": 4, "n": 32, "tm": 1, "ways": 4, "stages": 2, "parts": 1}),
     ("hidden", {"m": 8, "n": 64, "tm": 2, "ways": 2, "stages": 3, "parts": 1}),
     ("heads", {**THREADS, "stages": 1})],
    ids=str,
)  # fmt: skip
def test_configs_of_threads(name: str, config: Config) -> None:
    check(CASES[name], "f32", config)


@pytest.mark.parametrize("name", ["hidden", "large"])
def test_ways_that_have_no_keys_at_all(name: str) -> None:
    check(CASES[name], "f16", SPLIT)


@pytest.mark.parametrize(
    ("name", "kind", "config"),
    [("heads", "f16", {**SMALL, "parts": 2}),
     ("hidden", "f16", {**SMALL, "stages": 3, "parts": 3}),  # parts without any key
     ("large", "f16", {**SMALL, "stages": 1, "parts": 2}),  # the last one shorter
     ("one_row", "bf16", {**SPLIT, "ways": 2, "n": 32, "parts": 3}),
     ("odd", "tf32", {**SMALL, "held": 0, "parts": 2}),
     ("shared", "f16", {**SMALL, "n": 16, "parts": 2}),
     ("hidden", "f32", {**THREADS, "parts": 2}),
     ("wide", "f32", {**THREADS, "parts": 2}),
     ("one_row", "f32", {"m": 4, "n": 32, "tm": 1, "ways": 2, "stages": 2, "parts": 3})],
    ids=str,
)  # fmt: skip
def test_keys_in_parts(name: str, kind: str, config: Config) -> None:
    check(CASES[name], kind, config)


@pytest.mark.parametrize(
    ("kind", "config"), [("f16", SMALL), ("f32", THREADS), ("f16", {**SMALL, "parts": 2})], ids=str
)
def test_what_no_number_is_stays_so(kind: str, config: Config) -> None:
    """NaN and infinities spoil their own rows."""

    def build(t: Maker) -> Any:
        mask = np.zeros((19, 40))
        mask[2, 3], mask[4, 38], mask[5, 0] = np.nan, np.inf, -np.inf
        q, k, v = t.input(19, 16), t.input(40, 16), t.input(40, 16)
        return t.attend(q, k, v, t.input(19, 40, value=mask))

    check(build, kind, config)


# --------------------------------------------------------------------------- configs


def long(rows: int, keys: int, width: int, kind: str = "f16", heads: int = 16) -> Graph:
    def build(t: Maker) -> Any:
        q, k, v = (t.input(2, heads, n, width) for n in (rows, keys, keys))
        return t.attend(q, k, v)

    return graph_of(build, kind)[0]


@pytest.mark.parametrize("kind", ["f16", "tf32", "f32"])
@pytest.mark.parametrize("width", [8, 40, 64, 128])
def test_every_width_has_configs_that_fit(width: int, kind: str) -> None:
    shared = (gpu_attention_tiles if kind == "f32" else gpu_attention_mma).shared_bytes
    for rows in (1, 256):
        graph = long(rows, 256, width, kind, heads=2)
        given = graph, graph.ops, graph.outputs
        p = attention_of(*given)
        assert p is not None
        for same in (False, True):
            template = template_of(kind, same)
            space = template.space(*given, GPU)
            assert template.default(*given, GPU) in space and len(space) > 1 - same
            for c in (*space[::9], space[-1]) if rows > 1 else space[-1:]:
                entry, *more = kernel_source(template.instantiate(*given, GPU, c).kernel).entries
                assert len(more) == (c["parts"] > 1)
                assert entry.shared_bytes == shared(p, c) <= MOST_SHARED


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_defaults(kind: str) -> None:
    """Long sequences share keys among many rows, single queries keys among warps and blocks."""

    def default(*dims: int) -> Config:
        graph = long(*dims, kind)
        return template_of(kind).default(graph, graph.ops, graph.outputs, GPU)

    many = default(2048, 2048, 64)
    assert many["m"] >= 64 and many["parts"] == 1
    assert default(2048, 2048, 128)["m"] >= (32 if kind == "f32" else 64)
    one = default(1, 2048, 64)
    assert one["m"] <= 16 and one["ways"] > 1 and one["parts"] > 1
    assert default(1, 64, 64)["parts"] == 1, "a second kernel takes longer than so few keys"


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_parts_that_are_worth_trying(kind: str) -> None:
    """Every one of them has keys, and a device is not filled more than once."""
    graph = long(1, 2100, 64, kind, heads=8)
    given = graph, graph.ops, graph.outputs
    template = template_of(kind)
    space = template.space(*given, GPU)
    found = {(c["n"], c["parts"]) for c in space}
    assert {1, 2, 3, 8} <= {k for _, k in found}
    for n, parts in found:
        rounds = -(-2100 // n)
        assert -(-rounds // parts) * (parts - 1) < rounds and parts * 16 <= 4 * 108
    lean = template.lean(*given, GPU)
    assert lean[0] == template.default(*given, GPU) and lean[-1]["parts"] == 1
    few = {**lean[-1], "parts": 2}
    scratch = template.instantiate(*given, GPU, few).kernel.params[-2:]
    p = attention_of(*given)
    assert p is not None and sum(b.nbytes for b in scratch) == scratch_bytes(p, 2)


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_configs_give_the_same_bits_where_results_are_to_be_reproducible(kind: str) -> None:
    graph, t = graph_of(CASES["large"], kind, "reproducible")
    given = graph, graph.ops, graph.outputs
    space = template_of(kind, one_order=True).space(*given, GPU)
    assert len({c["m"] for c in space}) > 1 and len({c["stages"] for c in space}) > 1
    assert len(space) < len(template_of(kind).space(*given, GPU))
    results = [simulated(graph, launched(graph, c, kind), t.feeds).tobytes()
               for c in space[:: len(space) // 3]]  # fmt: skip
    assert len(results) >= 3 and len(set(results)) == 1


# --------------------------------------------------------------------------- what is taken


def test_whole_models_have_it() -> None:
    for kind in KINDS:
        graph, t = graph_of(CASES["heads"], kind)
        (launch,) = gpu_launches(t.g.build(), numerics_of(kind))[1]
        assert launch.kernel.template == template_of(kind).name
        assert len(launch.ops) == len(graph.ops)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_scales_of_queries_and_keys_go_to_their_products(kind: str) -> None:
    check(rooted, kind, SMALL)
    graph, t = graph_of(rooted, kind)
    (launch,) = gpu_launches(t.g.build(), "standard")[1]
    assert launch.kernel.template == "gpu_attention_mma" and len(launch.ops) == len(graph.ops)


def test_products_that_would_overflow_are_scaled_ahead() -> None:
    """As long as they are half floats, which they are where no attention is found."""
    t = Maker("f16")
    x = t.input(16, 16)
    t.g.output(t.g.relu((x * np.float16(0.5)) @ t.input(16, 16)), "y")
    assert len(gpu_launches(t.g.build(), "standard")[1]) == 2


def _narrow(t: Maker) -> Any:
    return t.attend(t.input(16, 4), t.input(32, 4), t.input(32, 16))


def _broad(t: Maker) -> Any:
    return t.attend(t.input(16, 136), t.input(32, 136), t.input(32, 16))


def _single(t: Maker) -> Any:
    return t.attend(*(t.input(16, 16, kind="f64") for _ in range(3)))


def _other_keys(t: Maker) -> Any:
    """Heads with keys of their own that share values."""
    return t.attend(t.input(2, 3, 16, 16), t.input(2, 3, 16, 16), t.input(2, 1, 16, 16))


def _double_scores(t: Maker) -> Any:
    q, k, v = (t.input(16, 16) for _ in range(3))
    scores = t.g.cast(q @ k, to="f64")
    return t.g.cast(t.g.softmax(scores, axis=-1), to="f16") @ v


def _other_type(t: Maker) -> Any:
    q, k, v = t.input(16, 16), t.input(16, 16), t.input(16, 16, kind="f32")
    return t.g.softmax(t.g.cast(q @ k, to="f32"), axis=-1) @ v


def _squared(t: Maker) -> Any:
    """Weights that are both operands."""
    weights = t.g.softmax(t.input(16, 16) @ t.input(16, 16), axis=-1)
    return weights @ weights


@pytest.mark.parametrize(
    "build", [_narrow, _broad, _single, _other_keys, _double_scores, _other_type, _squared]
)
def test_what_it_cannot_take_is_not_grouped_for_it(build: Build) -> None:
    """Nothing ends up as an attention in the general loop nest."""
    t = Maker("f64" if build is _single else "f16")
    t.g.output(build(t), "y")
    for numerics in ("standard", "reduced", "reproducible"):
        graph, launches = gpu_launches(t.g.build(), numerics)
        for launch in launches:
            ops = [graph.ops[k] for k in launch.ops]
            products = [op for op in ops if op.definition.trait(Contraction) is not None]
            assert len(products) < 2 and "attention" not in launch.kernel.template


# --------------------------------------------------------------------------- seeded mistakes

MISTAKES = (
    (r"\n +barrier\(\)", ""),
    (r"cp_wait\((\d)\)", "cp_wait(9)"),
    (r"\n +cp_commit\(\)", ""),
    (r"(cp_async)_zero(\([^\n]*, 16), v_\d+\)\n", r"\1\2)\n"),  # no zeros
    (r"( < 43)", " < 44"),  # a key too many
    (r"( < 19)", " < 20"),  # a row too many
    (r"(& \([^&]*?) < 24", r"\1 < 32"),  # terms or columns beyond the last
    (r"if round_2 \+ (\d) <", r"if round_2 + 1 + \1 <"),  # a round is not copied
    (r"(umod\(round_2 \+ \d, )(\d)\)", r"\1\2 - 1)"),  # another stage
    (r"(\w_place = )", r"\g<1>8 + "),  # the wrong terms or columns
    (r"(\w_place = .*umod\(lane, \d+\)) \* 40", r"\1 * 32"),  # lines at another pitch
    (r"ldmatrix\(", "ldmatrix_t("),
    (r"ldmatrix_t\(", "ldmatrix("),
    (r"step \* 4, 8", "0, 8"),  # terms of another step
    (r"step \* 16", "0"),
    (r"some \* 8,", "0,"),  # powers of other keys
    (r"some \* 640", "0"),
    (r"\n +pack_f16\([^\n]*", ""),
    (r"(pack_f16\(a, scores, )", r"\g<1>4 + "),
    (r"shuffle_xor\((\w+(?:\[r\])?), 1\)", r"shuffle_xor(\1, 4)"),  # another row's
    (r"shuffle_xor\((\w+(?:\[r\])?), 2\)", r"\1"),
    (r"\n +high = max\(top\[r\], ", "\n            high = max(f32(-inf), "),
    (r"scale = near_exp2\(top\[r\] - base\)", "scale = f32(1.0)"),  # no rescaling
    (r"\n +sums\[v_\d+\] = sums\[v_\d+\] \* scale", "\n                    pass"),
    (r"total\[r\] \* scale \+ part", "total[r] + part"),
    (r"\n +top\[r\] = high", ""),
    (r"base = high if [^\n]*", "base = high"),  # rows without a key so far
    (r", -base\)", ", base)"),
    (r"f32\(1\.4426950408889634\)", "f32(1.0)"),  # another base
    (r"f32\(-inf\)\n", "f32(0.0)\n"),
    (r"r \* 2\]", "r]"),
    (r"umod\(lane, 4\) \* 2(?! < 24)", "umod(lane, 4)"),
    (r"udiv\(lane, 4\)", "umod(lane, 4)"),
    (r"sums\[e \+", "sums[1 - e +"),
    (r"(shared_f16\()(\d+), (\d+)", r"\1\2, \3 - 64"),  # too little shared memory
    (r"shared_f16\([1-9]\d+,", "shared_f16(0,"),  # operands overlap
    (r"f32\(1\.0\) / total\[r\]", "f32(1.0) / part"),
)  # fmt: skip
JOINING = (
    (r"(share\[)(?=[^\n]*\] = )", r"\g<1>32 + "),
    (r"if udiv\(thread, 32\) < 1", "if udiv(thread, 32) < 2"),
    (r"if 0 < udiv\(thread, 32\)", "if 1 < udiv(thread, 32)"),
    (r"\n {8,}\w+ = near_exp2\(share[^\n]*", "\n                part = f32(1.0)"),
    (r"(own_key = [^\n]*) \* 16", r"\1 * 8"),
    (r"\n +total\[r\] = total\[r\] \* scale \+ share[^\n]*", ""),
)  # fmt: skip


PARTS = (
    (r"(first_round = umod\(item, 2\)) \* 2", r"\1"),
    (r"(last_round = min\(first_round \+ )2", r"\g<1>1"),
    (r"(last_round = min\(first_round \+ 2), 3", r"\1, 2"),
    (r"(first_row = )udiv\(", r"\1umod("),
    (r"(umod\(item, 2\)) \* (?:272|34)", r"\1 * 0"),
    (r"if umod\(lane, 4\) \* 2 == 0:", "if umod(lane, 4) == 4:"),
    (r"if umod\(lane, 4\) \* 2 == 0:", "if True:"),
    (r"if first_row [^\n]* < 17:", "if True:"),
    (r"\n +s1\[[^\n]*\] = [^\n]*", "\n                pass"),
    (r"\n +top = max\([^\n]*", "\n        pass"),
    (r"((?:high|some)_part \* )\d+", r"\g<1>0"),
    (r"near_exp2\(s1\[[^\n]*\] - top\)", "f32(1.0)"),
    (r"( \* 2 \+) 1\]", r"\1 0]"),
    (r"(total = total \+ v_\d+)", r"\1 * f32(0.5)"),
    (r"(\+ v\]) \* scale", r"\1"),
    (r"f32\(1\.0\) / total\n", "f32(1.0)\n"),
    (r"item >= 68", "item >= 67"),
)  # fmt: skip


ORDER = (
    *MISTAKES[:3],
    (r"if round_2 \+ (\d) <", r"if round_2 + 1 + \1 <"),
    (r"( < 43)", " < 44"),
)
IN_THREADS = (
    (r"\n +barrier\(\)", ""),
    (r"cp_wait\((\d)\)", "cp_wait(9)"),
    (r"( < 43)", " < 44"),
    (r"( < 19)", " < 20"),
    (r"if round_2 \+ (\d) <", r"if round_2 + 1 + \1 <"),
    (r"([qkv]_place = )", r"\g<1>4 + "),
    (r"(load_rows\(\w, \w+, [^\n]*), (\d+), 1, 0, 4\)", r"\1, \2 - 4, 1, 0, 4)"),
    (r", 1, 0, 4\)", ", 1, 0, 2)"),
    (r"(multiply\([^\n]*), 0, 0\)", r"\1, 0, 1)"),
    (r"(multiply\([^\n]*), 0, 1\)", r"\1, 0, 0)"),
    (r"term \* 4", "0"),
    (r"some_key \* 4", "0"),
    (r"powers\[", "powers[4 + "),
    (r"shuffle_xor\((\w+(?:\[r\])?), \d\)", r"\1"),
    (r"scale = exp\(top\[r\] - base\)", "scale = f32(1.0)"),
    (r"total\[r\] \* scale \+ part", "total[r] + part"),
    (r"\n +top\[r\] = high", ""),
    (r"base = high if [^\n]*", "base = high"),
    (r"f32\(-inf\)\n", "f32(0.0)\n"),
    (r"umod\(lane, 8\)(?=[^\n]* < 43)", "umod(lane, 4)"),
    (r"(shared_f32\()(\d+), (\d+)", r"\1\2, \3 - 64"),
    (r"shared_f32\([1-9]\d+,", "shared_f32(0,"),
)  # fmt: skip


def _guarded(t: Maker) -> Any:
    """With a mask that hides a row's first round, or makes it or the last one count alone, or has
    all scores of a row so low that their powers are zeros."""
    mask = np.zeros((1, 1, 19, 43))
    mask[..., 2::3, :33] = -np.inf
    mask[..., 0::3, 34:] = 60
    mask[..., 1::6, :] = -200
    mask[..., 4::6, :32] = 200
    return heads(t, 1, mask)


def _uneven(t: Maker) -> Any:
    """All keys count alike in some rows, the last ones alone in others."""
    mask = np.where(np.arange(17)[:, None] % 2, np.linspace(-3000, 3000, 70), 0)
    return t.attend(t.input(17, 16), t.input(70, 16), t.input(70, 16), t.input(17, 70, value=mask))


@pytest.mark.parametrize(
    ("build", "config", "mistakes", "least"),
    [(_guarded, SMALL, MISTAKES, 60), (CASES["one_row"], SPLIT, JOINING, 6),
     (_guarded, THREADS, IN_THREADS, 20), (_guarded, {**SMALL, "stages": 1}, ORDER, 9),
     (_uneven, {**SMALL, "stages": 3, "parts": 2}, PARTS, 20)],
    ids=["warps", "ways", "threads", "one stage", "parts"],
)  # fmt: skip
def test_seeded_mistakes_are_caught(
    build: Build, config: Config, mistakes: Any, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """By an error or by a wrong result."""
    kind = "f32" if "tm" in config else "f16"
    graph, t = graph_of(build, kind)
    want = expected(graph, t)
    launch = launched(graph, config, kind)
    source = kernel_source(launch.kernel)

    def right(of: Source) -> bool:
        try:
            got = simulated(graph, launch, t.feeds, source=of)
        except (SimError, IndexError):
            return False
        return bool(np.allclose(got, want, 0, KINDS[kind] * np.abs(want).max()))

    assert_caught(source, mistakes, right, least, capsys)
