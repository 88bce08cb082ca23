"""Decoding of tensors: every element type and storage, and external files that may be opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tilewright.compiler.errors import ModelError
from tilewright.compiler.frontends.onnx import load, read
from tilewright.compiler.frontends.onnx_tensors import DTYPES, ExternalFiles, ForeignType, decode
from tilewright.ops import types as t

NO_FILES = ExternalFiles(None)
NUMBERS = {d: n for n, d in DTYPES.items()}


def sample(dtype: t.DType) -> np.ndarray:
    if dtype.kind == "b":
        return np.array([[True, False, True], [False, False, True]])
    if dtype is t.bf16:
        return np.array([[0x3F80, 0xBF80, 0], [0x7FC0, 1, 0x4049]], np.uint16)
    if dtype.is_float:
        return np.array([[1.5, -2.25, 0], [np.inf, 65504, -0.0]]).astype(dtype.numpy)
    low = np.iinfo(dtype.numpy)
    return np.array([[0, 1, 2], [low.min, low.max, 7]], dtype.numpy)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_both_storages_of_every_element_type(dtype: t.DType) -> None:
    want = sample(dtype)
    raw = onnx.TensorProto(data_type=NUMBERS[dtype], dims=[2, 3], raw_data=want.tobytes())
    field = {t.f32: "float_data", t.f64: "double_data", t.i64: "int64_data", t.u32: "uint64_data",
             t.u64: "uint64_data"}.get(dtype, "int32_data")  # fmt: skip
    bits = {t.f16: np.uint16, t.bf16: np.uint16, t.boolean: np.uint8}.get(dtype, dtype.numpy)
    typed = onnx.TensorProto(data_type=NUMBERS[dtype], dims=[2, 3])
    getattr(typed, field).extend(want.view(bits).reshape(-1).tolist())
    for tensor in (raw, typed):
        got = decode(tensor, NO_FILES, "t")
        assert got.dtype is dtype
        assert got.array.dtype == dtype.numpy
        assert got.array.tobytes() == want.tobytes()


def test_what_onnx_writes_is_read_back() -> None:
    for array in (np.float32(3), np.zeros((0, 4), np.int64), np.arange(6.0).reshape(2, 3)):
        got = decode(numpy_helper.from_array(np.asarray(array)), NO_FILES, "t")
        np.testing.assert_array_equal(got.array, array)


def test_raw_data_is_not_copied() -> None:
    tensor = numpy_helper.from_array(np.ones(1000, np.float32))
    assert not decode(tensor, NO_FILES, "t").array.flags.owndata


def test_wrong_lengths() -> None:
    for n in (0, 23, 25, 28):
        bad = onnx.TensorProto(data_type=1, dims=[2, 3], raw_data=b"\0" * n)
        with pytest.raises(ModelError, match=f"needs 24 bytes .* has {n} bytes"):
            decode(bad, NO_FILES, "the tensor")
    few = onnx.TensorProto(data_type=1, dims=[2, 3], float_data=[1.0] * 5)
    with pytest.raises(ModelError, match="needs 6 elements of f32, but its float_data has 5"):
        decode(few, NO_FILES, "the tensor")
    with pytest.raises(ModelError, match="negative"):
        decode(onnx.TensorProto(data_type=1, dims=[-1]), NO_FILES, "the tensor")
    with pytest.raises(ModelError, match="77"):
        decode(onnx.TensorProto(data_type=77, dims=[1]), NO_FILES, "the tensor")
    with pytest.raises(ForeignType, match="string"):
        decode(onnx.TensorProto(data_type=8, dims=[1]), NO_FILES, "the tensor")


def external(location: str, **entries: object) -> onnx.ModelProto:
    w = onnx.TensorProto(name="w", data_type=1, dims=[3], data_location=TensorProto.EXTERNAL)
    for k, v in {"location": location, **entries}.items():
        w.external_data.add(key=k, value=str(v))
    node = helper.make_node("Add", ["x", "w"], ["y"])
    infos = [helper.make_tensor_value_info(n, 1, [3]) for n in "xy"]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_external_data(tmp_path: Path) -> None:
    data = np.arange(10, dtype=np.float32)
    (tmp_path / "sub").mkdir()
    (tmp_path / "weights.bin").write_bytes(data.tobytes())
    (tmp_path / "sub" / "w.bin").write_bytes(data[:3].tobytes())
    path = tmp_path / "net.onnx"
    for location, entries, want in [
        ("weights.bin", {"offset": 8, "length": 12}, data[2:5]),
        ("weights.bin", {"offset": 28}, data[7:]),
        ("sub/w.bin", {}, data[:3]),
        ("./sub/w.bin", {}, data[:3]),
    ]:
        onnx.save(external(location, **entries), path)
        np.testing.assert_array_equal(read(path).blobs["w"].value, want)
        np.testing.assert_array_equal(read(str(path)).blobs["w"].value, want)
    with pytest.raises(ModelError, match="give the path"):
        read(external("weights.bin"))


@pytest.mark.parametrize(
    ("location", "entries", "message"),
    [
        ("../secret", {}, "outside the model's folder"),
        ("sub/../../secret", {}, "outside the model's folder"),
        ("sub/../w.bin", {}, "outside the model's folder"),
        ("/etc/hostname", {}, "outside the model's folder"),
        ("link", {}, "outside the model's folder"),
        ("linked/secret", {}, "outside the model's folder"),
        ("", {}, "outside the model's folder"),
        ("a\0b", {}, "outside the model's folder"),
        ("none.bin", {}, "does not exist"),
        (".", {}, "does not exist"),
        ("w.bin", {"offset": 4}, "bytes 4 to 16 .* has 12 bytes"),
        ("w.bin", {"offset": -4, "length": 12}, "bytes -4 to 8"),
        ("w.bin", {"length": 8}, "needs 12 bytes .* has 8 bytes"),
        ("w.bin", {"offset": "four"}, "no number"),
        ("empty.bin", {}, "has 0 bytes"),
    ],
)
def test_external_data_that_is_refused(
    tmp_path: Path, location: str, entries: dict[str, object], message: str
) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 12)
    (folder / "w.bin").write_bytes(b"\0" * 12)
    (folder / "empty.bin").write_bytes(b"")
    (folder / "link").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    path = folder / "net.onnx"
    path.write_bytes(external(location, **entries).SerializeToString())
    with pytest.raises(ModelError, match=message) as e:
        load(path)
    assert "'w'" in str(e.value)
