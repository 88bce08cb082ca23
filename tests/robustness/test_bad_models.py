"""A model that cannot be compiled raises an error of ours, at once, that says why, and leaves
nothing behind. Odd names are not bad: they work."""

from __future__ import annotations

import gc
import os
import re
import warnings
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tilewright as tw
from tilewright.compiler.api.executable import Executable
from tilewright.compiler.errors import (
    GraphError,
    InputError,
    LoweringError,
    MemoryLimitError,
    ModelError,
    OptionError,
    PlanError,
    UnsupportedOperator,
)
from tilewright.compiler.graph.text import parse, to_text

from ..fuzz.onnx_mutants import mutant
from .models import F, model, node, quick_and_clean, small_net, tensor, value

Refuse = Callable[..., str]


OTHER_FILES = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n": "Git LFS",
    b"PK\x03\x04" + b"\0" * 40: "tw.load",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j": "pickle",
    b"\x89HDF\r\n\x1a\n" + b"\0" * 30: "Keras",
    b"\x1c\0\0\0TFL3" + b"\0" * 30: "TensorFlow Lite",
    b"\x10\0\0\0\0\0\0\0" + b'{"w":{"dtype":"F32"}}': "safetensors",
    b"<!DOCTYPE html><html><body>404": "download",
}


@pytest.fixture(autouse=True)
def warm() -> None:
    """Reading the generated protobuf classes is no model's fault."""
    tw.compile(model([node("Relu", "x")]))


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """`refuse(model, "part of the message")`; returns the message."""
    here, cache = tmp_path / "cwd", tmp_path / "cache"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(cache))

    def check(source: Any, *parts: str, error: type[Exception] = ModelError, **options: Any) -> str:
        with quick_and_clean(here, cache), pytest.raises(error) as e:
            tw.compile(source, **options)
        text = str(e.value)
        assert isinstance(e.value, tw.TilewrightError)
        missing = [p for p in parts if p not in text]
        assert not missing, f"{missing} not in: {text}"
        assert not cache.exists()
        return text

    return check


# --------------------------------------------------------------------------- the model as bytes


def test_a_truncated_model(refuse: Refuse, tmp_path: Path) -> None:
    data = small_net().SerializeToString()
    refuse(data[: len(data) // 2], "truncated")
    path = tmp_path / "half.onnx"
    path.write_bytes(data[: len(data) // 3])
    refuse(path, "half.onnx", "truncated")
    refuse(str(path), "half.onnx")
    path.write_bytes(b"")
    refuse(path, "empty")
    refuse(tmp_path / "none.onnx", "none.onnx", "No such file")
    refuse(tmp_path, "cannot be read")
    refuse(b"PK\x03\x04 not a model", "no ONNX model")
    refuse("nul\0byte.onnx", "cannot be read")


@pytest.mark.parametrize("source", [None, 3, 2.5, [], {}, object(), np.ones(3), tw.compile])
def test_what_is_no_model(refuse: Refuse, source: Any) -> None:
    refuse(source, type(source).__name__)


def test_graph_text_that_is_damaged(refuse: Refuse, tmp_path: Path) -> None:
    path = tmp_path / "net.txt"
    refuse(path, "net.txt", error=tw.TilewrightError)
    path.write_text("graph net(%x: f32[2]) -> (%y: f32[2]) {\n  %y = relo(%x) : f32[2]\n}\n")
    refuse(path, "line 2", "relu", error=GraphError)
    path.write_bytes(b"\xff\xfe graph")
    refuse(path, "net.txt", error=tw.TilewrightError)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, removed, doubled, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(out)))
        kind = rng.integers(0, 5)
        if kind <= 1:
            out[at] = rng.integers(0, 256)
        elif kind == 2:
            out[at] ^= 1 << rng.integers(0, 8)
        elif kind == 3:
            del out[at : at + int(rng.integers(1, 9))]
        else:
            out[at:at] = out[at : at + int(rng.integers(1, 9))]
    return bytes(out[: int(rng.integers(1, len(out)))] if rng.random() < 0.1 else out)


def attack(seed: int, tmp_path: Path) -> bool:
    """Compile and call a damaged model; whether that worked."""
    data = damaged(tiny_net().SerializeToString(), np.random.default_rng(seed))
    with quick_and_clean(tmp_path):
        try:
            exe = tw.compile(data)
            if isinstance(exe, Executable):
                exe(*(np.ones(s.shape, s.dtype) for s in exe.inputs))
        except tw.TilewrightError as e:
            assert str(e)
            return False
    return True


def tiny_net() -> onnx.ModelProto:
    """Many kinds of fields, few bytes of weights."""
    w = tensor(np.array([[[[1, -1]]]], np.float32), "w")
    nodes = [
        node("Conv", "x", "w", out="c", pads=[0, 0, 0, 1], strides=[1, 2]),
        node("LeakyRelu", "c", out="r", alpha=0.1),
        node("Transpose", "r", out="t", perm=[0, 1, 3, 2]),
        node("Reshape", "t", "s", out="f"),
        node("Softmax", "f", out="y", axis=1),
    ]
    shape = TensorProto(name="s", data_type=TensorProto.INT64, dims=[2], int64_data=[2, -1])
    return model(nodes, [value("x", (1, 1, 4, 6))], [value("y", (2, 6))], [w, shape])


def test_damaged_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = [attack(seed, tmp_path) for seed in range(250)]
    assert 3 < sum(outcomes) < 200, "the damage should hit structure and weights alike"


@pytest.mark.slow
def test_many_damaged_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(1000, 6000):
        attack(seed, tmp_path)


def call_if_small(exe: object) -> None:
    """A change may turn a small model into a vast one, which is right but takes its time."""
    if isinstance(exe, Executable):
        specs = (*exe.inputs, *exe.outputs)
        size = exe.plan.arena_bytes + sum(prod(s.shape) * s.dtype.itemsize for s in specs)
        if size < 1 << 26 and sum(k.flops + k.bytes for k in exe.kernels) < 1 << 28:
            exe(*(np.ones(s.shape, s.dtype) for s in exe.inputs))


def compile_mutants(seeds: range, folder: Path) -> tuple[int, int]:
    """Compile changed random models, twenty of each; how many worked and how many were refused."""
    pytest.importorskip("onnxruntime")
    from ..fuzz.onnx_random import random_model

    worked = refused = 0
    for seed in seeds:
        if seed % 20 == 0 or seed == seeds[0]:
            base = random_model(seed // 20, 6 + seed // 20 % 8).model
        changed = mutant(base, seed)
        with quick_and_clean(folder):
            try:
                call_if_small(tw.compile(changed))
                worked += 1
            except tw.TilewrightError as e:
                assert str(e) and not isinstance(e, (LoweringError, PlanError)), f"seed {seed}: {e}"
                refused += 1
    return worked, refused


def test_models_with_changed_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    worked, refused = compile_mutants(range(160), tmp_path)
    assert worked > 10 and refused > 60


@pytest.mark.slow
def test_many_models_with_changed_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compile_mutants(range(4000, 8000), tmp_path)


# --------------------------------------------------------------------------- structure


def test_unknown_operators_are_listed_all_at_once(refuse: Refuse) -> None:
    nodes = [
        node("Relu", "x", out="a"),
        node("FancyNorm", "a", out="b", name="block3/norm"),
        node("Add", "a", "b", out="c"),
        node("Sparkle", "a", out="d", name="tail"),
        node("Concat", "c", "d", out="y", axis=0),
    ]
    text = refuse(model(nodes), "2 of 5", error=UnsupportedOperator)
    assert (
        "FancyNorm" in text and "'block3/norm'" in text and "Sparkle" in text and "'tail'" in text
    )
    assert "Relu" not in text and "Concat" not in text


def test_cycles_duplicates_and_undefined_names(refuse: Refuse) -> None:
    loop = [node("Add", "x", "b", out="a", name="first"), node("Relu", "a", out="b", name="second"),
            node("Relu", "b", out="y")]  # fmt: skip
    refuse(model(loop), "cycle", "'first'", "'second'")
    own = [node("Add", "x", "y", out="y", name="self")]
    refuse(model(own), "cycle", "'self'")
    refuse(model([node("Relu", "x", name="a"), node("Tanh", "x", name="b")]), "'y'", "twice", "'b'")
    refuse(model([node("Relu", "x")], inputs=["x", "x"]), "'x'")
    refuse(model([node("Relu", "x")], outputs=["y", "y"]), "'y'")
    refuse(model([node("Relu", "x", out="x")], outputs=["x"]), "'x'")
    refuse(model([node("Relu", "nowhere", name="lost")]), "'nowhere'", "'lost'")
    refuse(model([node("Relu", "x", out="z")]), "'y'")
    w = [tensor(np.ones(3, np.float32))] * 2
    refuse(model([node("Add", "x", "w")], initializers=w), "'w'", "twice")
    refuse(model([]), "'y'")
    refuse(onnx.ModelProto(), "nothing")


def test_deep_and_wide_models_are_no_problem() -> None:
    deep = [node("Relu", f"v{k}", out=f"v{k + 1}", name=f"n{k}") for k in range(800)]
    deep[0].input[0], deep[-1].output[0] = "x", "y"
    x = np.array([[-1, 0, 1], [2, -3, 4]], np.float32)
    np.testing.assert_array_equal(tw.compile(model(deep))(x), np.maximum(x, 0))


# --------------------------------------------------------------------------- shapes, types, values


def test_attributes_out_of_range(refuse: Refuse) -> None:
    image, w = value("x", (1, 1, 9, 9)), tensor(np.ones((1, 1, 3, 3), np.float32))
    out = value("y", (1, 1, 9, 9))
    bad = error_of = GraphError
    pads = node("Conv", "x", "w", name="c", pads=[-5] * 4)
    refuse(model([pads], [image], [out], [w]), "'c'", "-5", error=bad)
    pool = node("MaxPool", "x", name="p", kernel_shape=[3, 3], pads=[-5] * 4)
    refuse(model([pool], [image], [out]), "'p'", "-5", error=bad)
    average = node("AveragePool", "x", name="p", kernel_shape=[3, 3], pads=[-5] * 4)
    refuse(model([average], [image], [out]), "'p'", "-5", error=bad)
    cut = node("Pad", "x", "p", name="cut")
    refuse(model([cut], initializers=[tensor(np.array([-5] * 4), "p")]), "'cut'", error=bad)
    for name, attrs in [("Softmax", dict(axis=2)), ("Softmax", dict(axis=-3)),
                        ("Concat", dict(axis=2)), ("Flatten", dict(axis=3)),
                        ("LogSoftmax", dict(axis=99)), ("ArgMax", dict(axis=2)),
                        ("Gather", dict(axis=2)), ("ReduceMean", dict(axes=[2])),
                        ("Transpose", dict(perm=[0, 2])), ("Transpose", dict(perm=[0, 0])),
                        ("LayerNormalization", dict(axis=5))]:  # fmt: skip
        ins = ["x", "i"] if name == "Gather" else ["x", "x"] if "Layer" in name else ["x"]
        parts = [tensor(np.array([0]), "i")]
        n = node(name, *ins, name="bad", **attrs)
        refuse(model([n], initializers=parts, outputs=["y"]), "'bad'", error=error_of)
    stretched = node("Conv", "x", "w", name="c", strides=[0, 1])
    refuse(model([stretched], [image], [out], [w]), "'c'", "stride", error=bad)
    stretched = node("Conv", "x", "w", name="c", dilations=[-1, 1])
    refuse(model([stretched], [image], [out], [w]), "'c'", "dilation", error=bad)
    groups = node("Conv", "x", "w", name="c", group=0)
    refuse(model([groups], [image], [out], [w]), "'c'", "group", error=bad)
    groups = node("Conv", "x", "w", name="c", group=7)
    refuse(model([groups], [image], [out], [w]), "'c'", "group", error=bad)
    kernel = node("MaxPool", "x", name="p", kernel_shape=[0, 3])
    refuse(model([kernel], [image], [out]), "'p'", error=bad)
    kernel = node("MaxPool", "x", name="p", kernel_shape=[30, 3])
    refuse(model([kernel], [image], [out]), "'p'", error=bad)


def test_sizes_beyond_any_machine(refuse: Refuse) -> None:
    huge = "larger than any machine"
    refuse(model([node("Relu", "x")], [value("x", (1 << 31, 1 << 31, 4))]), "'x'", huge)
    refuse(model([node("Relu", "x")], [value("x", (1 << 62, 1 << 62))]), "'x'", huge)
    wide = TensorProto(name="w", data_type=F, dims=[1 << 40, 1 << 40], raw_data=b"")
    refuse(model([node("Add", "x", "w")], initializers=[wide]), "'w'", huge)
    negative = TensorProto(name="w", data_type=F, dims=[-2, 3], raw_data=b"")
    refuse(model([node("Add", "x", "w")], initializers=[negative]), "'w'", "negative")
    shape = tensor(np.array([1 << 40, 1 << 40]), "s")
    for name, ins in [("ConstantOfShape", ["s"]), ("Expand", ["x", "s"]), ("Tile", ["x", "s"])]:
        refuse(model([node(name, *ins, name="big")], [value("x", (1, 1))], initializers=[shape]),
               "'big'", "any machine", error=tw.TilewrightError)  # fmt: skip
    sizes = tensor(np.array([1, 1, 1 << 30, 1 << 30]), "s")
    grow = node("Resize", "x", "", "", "s", name="big")
    refuse(model([grow], [value("x", (1, 1, 2, 2))], initializers=[sizes]), "'big'",
           error=tw.TilewrightError)  # fmt: skip
    limits = [tensor(np.array(v), n) for n, v in [("a", 0), ("b", 1 << 60), ("d", 1)]]
    refuse(model([node("Range", "a", "b", "d", name="big")], initializers=limits), "'big'",
           error=tw.TilewrightError)  # fmt: skip
    pads = tensor(np.array([1 << 40] * 4), "p")
    refuse(model([node("Pad", "x", "p", name="big")], initializers=[pads]), "'big'",
           error=tw.TilewrightError)  # fmt: skip


def test_a_program_larger_than_memory() -> None:
    """Sizes that a machine could have, but this one has not."""
    shape = tensor(np.array([1 << 20, 1 << 20]), "s")
    wide = [node("Expand", "x", "s", out="h"), node("Softmax", "h", out="i", axis=1),
            node("Transpose", "i", out="j"), node("Softmax", "j", out="k", axis=1),
            node("ReduceMax", "k", keepdims=0)]  # fmt: skip
    big = model(wide, [value("x", (1, 1))], [value("y", ())], [shape])
    with quick_and_clean(), pytest.raises(MemoryLimitError, match="no memory"):
        tw.compile(big)


def test_shapes_and_types_that_clash(refuse: Refuse) -> None:
    def pair(other: onnx.ValueInfoProto, name: str = "Add") -> onnx.ModelProto:
        return model([node(name, "x", "z", name="both")], ["x", other])

    refuse(pair(value("z", (2, 4))), "'both'", "[2,3]", "[2,4]", error=GraphError)
    refuse(pair(value("z", (2, 3), TensorProto.INT64)), "'both'", "i64", error=GraphError)
    refuse(pair(value("z", (4, 5)), "MatMul"), "'both'", error=GraphError)
    refuse(pair(value("z", (2, 3), TensorProto.INT32), "MatMul"), "'both'", error=GraphError)
    refuse(pair(value("z", (2, 3)), "And"), "'both'", error=GraphError)
    w = tensor(np.ones((4, 3, 3, 3), np.float32))
    conv = model([node("Conv", "x", "w", name="c")], [value("x", (1, 2, 9, 9))],
                 [value("y", (1, 4, 7, 7))], [w])  # fmt: skip
    refuse(conv, "'c'", error=GraphError)
    shape = tensor(np.array([4, 5]), "s")
    refuse(model([node("Reshape", "x", "s", name="r")], initializers=[shape]), "'r'",
           error=GraphError)  # fmt: skip
    refuse(model([node("Relu", "x")], outputs=[value("y", (3, 2))]), "'y'", "[3,2]", "[2,3]")
    refuse(model([node("Relu", "x")], outputs=[value("y", (2, 3), TensorProto.DOUBLE)]), "'y'")
    strings = model([node("Identity", "x")], [value("x", (2,), TensorProto.STRING)],
                    [value("y", (2,), TensorProto.STRING)])  # fmt: skip
    refuse(strings, "string")
    foreign = model([node("Identity", "x")], [value("x", (2,), TensorProto.COMPLEX64)],
                    [value("y", (2,), TensorProto.COMPLEX64)])  # fmt: skip
    refuse(foreign, "complex64")


def test_tensors_whose_data_does_not_fit(refuse: Refuse) -> None:
    def of(**fields: Any) -> onnx.ModelProto:
        t = TensorProto(name="w", **{"data_type": F, "dims": [3], **fields})
        return model([node("Add", "x", "w")], initializers=[t])

    refuse(of(raw_data=b"1234567"), "'w'", "12 bytes", "7 bytes")
    refuse(of(raw_data=b"0" * 16), "'w'", "16 bytes")
    refuse(of(raw_data=b""), "'w'", "0 bytes")
    refuse(of(float_data=[1, 2]), "'w'", "3 elements")
    refuse(of(int32_data=[1, 2, 3]), "'w'")
    refuse(of(data_type=0, raw_data=b"0" * 12), "undefined")
    refuse(of(data_type=99, raw_data=b"0" * 12), "'w'", "99")
    refuse(of(data_type=8, string_data=[b"a", b"b", b"c"]), "string")


# --------------------------------------------------------------------------- external data


def external(location: str, **entries: str) -> onnx.ModelProto:
    t = TensorProto(name="w", data_type=F, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **entries}.items():
        t.external_data.add(key=key, value=text)
    return model([node("Add", "x", "w")], initializers=[t])


def test_external_data_stays_in_its_folder(refuse: Refuse, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(np.float32([1, 2, 3]).tobytes())
    (folder / "link").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path, target_is_directory=True)
    path = folder / "net.onnx"

    def save(m: onnx.ModelProto) -> Path:
        path.write_bytes(m.SerializeToString())
        return path

    outside = ["../secret", str(secret), "link", "up/secret", "a/../../secret", "..\\secret",
               "./../secret", "/proc/self/environ", "net/../../secret"]  # fmt: skip
    for location in outside:
        refuse(save(external(location)), "'w'", "outside", "not allowed")
    refuse(save(external("")), "'w'")
    refuse(save(external("nowhere")), "'nowhere'", "does not exist")
    refuse(save(external(".")), "'w'")
    refuse(save(external("a\0b")), "'w'")
    (folder / "data").write_bytes(np.float32([1, 2, 3]).tobytes())
    refuse(save(external("data", offset="4")), "16", "12 bytes")
    refuse(save(external("data", length="8")), "8 bytes")
    refuse(save(external("data", offset="-4")), "'w'")
    refuse(save(external("data", offset="x")), "'w'")
    refuse(save(external("data", length=str(1 << 70))), "'w'")
    refuse(external("data"), "folder is not known")
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(tw.compile(save(external("data")))(x), x + np.float32([1, 2, 3]))


# --------------------------------------------------------------------------- arguments


def test_arguments_of_compile(refuse: Refuse) -> None:
    net = small_net()
    refuse(net, "cuda", target="cuda", error=tw.TilewrightError)
    refuse(net, "fast", numerics="fast", error=OptionError)
    refuse(net, "0", threads=0, error=OptionError)
    refuse(net, "lots", memory_limit="lots", error=OptionError)
    refuse(net, "1", memory_limit=1, error=tw.TilewrightError)
    refuse(net, "'q'", shapes={"q": (1,)}, error=OptionError)
    refuse(net, "'x'", shapes={"x": (1, 2, 7, 6)}, error=OptionError)
    refuse(net, "'x'", shapes={"x": (1, 2)}, error=OptionError)
    refuse(net, "'nope'", outputs=["nope"])
    for bad in ({"x": "ab"}, {"x": None}, {"x": (1.5, 2, 6, 6)}, {"x": (1, 2, 6, -6)}, 7):
        refuse(net, shapes=bad, error=OptionError)


def test_wrong_shapes_and_types_of_inputs() -> None:
    exe = tw.compile(small_net())
    x = np.ones((1, 2, 6, 6), np.float32)
    for bad, parts in [
        (x[0], ("[2, 6, 6]", "[1, 2, 6, 6]")),
        (x[:, :, :5], ("[1, 2, 5, 6]",)),
        (x.astype(np.float64), ("float32", "float64")),
        (x.astype(np.int32), ("float32", "int32")),
        (x.astype(np.complex64), ("complex64",)),
        (x.astype(str), ("float32",)),
        (x.astype(object), ("object",)),
    ]:
        with quick_and_clean(), pytest.raises(InputError) as e:
            exe(bad)
        assert all(p in str(e.value) for p in ("'x'", *parts)), str(e.value)
    for arrays, named in [((), {}), ((x, x), {}), ((x,), {"x": x}), ((), {"z": x})]:
        with pytest.raises(InputError):
            exe(*arrays, **named)
    with pytest.raises(InputError, match="'x'"):
        exe.run({})
    with pytest.raises(InputError, match="'z'"):
        exe.run({"x": x, "z": x})
    assert exe(x).shape == (1, 5)


# --------------------------------------------------------------------------- names

NAMES = [
    '__import__("os").system("false")', "a b", '"', "'", "\n", "a\r\nb", "", "ünïcødé ☃ 語",
    "x" * 5000, "%0", "@main", "a/b:0", "\\", "\\n", "{}", "%s %d", "{x}", "#", "# model: y", "0",
    "-1", "None", "lambda", "graph", "const", "in", "as", "_", "\t", "a\0b", "\u202e", "😀", "a,b",
    "a)", "..", "/", "f32[2,3]", "group 0 {", "}", "sha256:0", "; ret void", "declare void @f()",
    "arg0", "c_1", "self", "c0", "x1", "input", "exe",
]  # fmt: skip


def named(names: Sequence[str]) -> onnx.ModelProto:
    """A net in which the values, nodes and initialisers have the given names, four per use.

    "" means "absent" for a value, so there it gets a letter.
    """
    x, w, h, y, z = (n or letter for n, letter in zip(names, "xwhyz", strict=False))
    nodes = [
        helper.make_node("Add", [x, w], [h], name=names[0]),
        helper.make_node("Softmax", [h], [y], name=names[1]),
        helper.make_node("Mul", [h, w], [z], name=names[2]),
    ]
    m = model(nodes, [x], [y, z], [tensor(np.float32([1, 2, 3]), w)])
    m.graph.name = names[3]
    m.graph.doc_string = names[4]
    return m


def rotated(k: int) -> list[str]:
    return [NAMES[(k + j) % len(NAMES)] for j in range(5)]


@pytest.mark.parametrize("k", range(len(NAMES)), ids=lambda k: f"name{k}")
def test_any_name_works(k: int) -> None:
    names = rotated(k)
    m = named(names)
    inputs, outputs = [v.name for v in m.graph.input], [v.name for v in m.graph.output]
    exe = tw.compile(m.SerializeToString())
    x = np.float32([[-1, 0, 1], [2, -3, 4]])
    h = x + np.float32([1, 2, 3])
    soft = np.exp(h) / np.exp(h).sum(-1, keepdims=True)
    want = (soft, h * np.float32([1, 2, 3]))
    assert [s.name for s in exe.inputs] == inputs and [s.name for s in exe.outputs] == outputs
    for got in (exe(x), tuple(exe.run({inputs[0]: x}).values()), exe(**{inputs[0]: x})):
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-5)
    assert list(exe.run({inputs[0]: x})) == outputs
    for stage in exe.stages:
        arrays = {n: b.value for n, b in stage.graph.blobs.items() if b.value is not None}
        again = parse(to_text(stage.graph), arrays)
        assert again.structural_key() == stage.graph.structural_key()
        assert (again.inputs, again.outputs) == (stage.graph.inputs, stage.graph.outputs)
    assert str(exe.profile(rounds=1)) and repr(exe) and exe.kernels


@pytest.mark.parametrize("level", ["graph", "fused", "memory", "kernels", "source", "llvm", "asm"])
def test_views_of_models_with_odd_names(level: str) -> None:
    for k in range(0, len(NAMES), 4):
        text = tw.compile(named(rotated(k))).ir(level)
        assert text.strip()
        # a name never becomes a line of its own, which could pass for code
        assert not re.search(r"^\s*declare void @f\(\)$|^\s*; ret void$", text, re.M)
        assert "\0" not in text and "\u202e" not in text


def test_a_graph_built_with_odd_names() -> None:
    for k in range(0, len(NAMES), 3):
        a, b, c, d, e = (n or letter for n, letter in zip(rotated(k), "abcde", strict=True))
        g = tw.Graph(a)
        x = g.input(b, (2, 3))
        w = g.parameter(c, np.float32([1, 2, 3]))
        g.output(g.relu(g.add(x, w, name=e)), name=d)
        value = np.full((2, 3), -2, np.float32)
        exe = tw.compile(g)
        np.testing.assert_array_equal(exe.run({b: value})[d], np.maximum(value + [1, 2, 3], 0))


@pytest.mark.parametrize("start", OTHER_FILES, ids=OTHER_FILES.values())
def test_other_files_are_recognised(start: bytes, tmp_path: Path, refuse: Refuse) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(start)
    refuse(path, f"model file {str(path)!r} ({len(start)} bytes) is no ONNX model",
           OTHER_FILES[start])  # fmt: skip


def test_modules_of_torch_are_to_be_exported(refuse: Refuse) -> None:
    linear = type("Linear", (type("Module", (), {"__module__": "torch.nn"}),), {})()
    refuse(linear, "type Linear is not an ONNX model", "torch.onnx.export")


def test_model_files_are_closed(tmp_path: Path) -> None:
    """Warnings about open files would be the users' to look into."""
    onnx.save(small_net(), tmp_path / "m.onnx")
    gc.collect()  # what other tests left open
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        exe = tw.compile(tmp_path / "m.onnx")
        del exe
        gc.collect()
    assert not found
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before
