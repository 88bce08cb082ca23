"""Rewrites of benchmark models: other batches, no MaxUnpool, PyTorch from ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw

from .scripts import script

models = script("models")


def classifier() -> onnx.ModelProto:
    """A convolution and a product, with the batch written into the target of a reshape."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "m": rng.standard_normal((5, 4 * 16)).astype(np.float32),
        "b": rng.standard_normal(5).astype(np.float32),
        "flat": np.array([1, 64], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 0, 0], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("AveragePool", ["r"], ["p"], kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Reshape", ["p", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "m", "b"], ["g"], transB=1),
        helper.make_node("Softmax", ["g"], ["y"], axis=1),
    ]
    return network(nodes, [1, 3, 8, 8], [1, 5], weights)


def unpooling() -> onnx.ModelProto:
    shape = {"s": np.array([1, 2, 6, 4], np.int64)}
    nodes = [
        helper.make_node("MaxPool", ["x"], ["v", "i"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Relu", ["v"], ["r"]),
        helper.make_node("MaxUnpool", ["r", "i", "s"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    return network(nodes, [1, 2, 6, 4], [1, 2, 6, 4], shape)


def network(
    nodes: list[onnx.NodeProto], x: list[int], y: list[int], constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)


@pytest.mark.parametrize("make", [classifier, unpooling])
def test_a_batch_is_so_many_samples(make: object) -> None:
    assert callable(make)
    x = np.random.default_rng(1).standard_normal((3, *shape_of(make()))).astype(np.float32)
    one, three = tw.compile(make()), tw.compile(models.with_batch(make(), 3))
    assert isinstance(one, tw.Executable) and isinstance(three, tw.Executable)
    each = np.concatenate([one(x[k : k + 1]) for k in range(3)])
    assert each.std() > 0
    # sums of at most 64 float32 products, in an order that may depend on the batch
    np.testing.assert_allclose(three(x), each, rtol=0, atol=64 * 2**-23 * np.abs(each).max())


def shape_of(model: onnx.ModelProto) -> tuple[int, ...]:
    return tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)[1:]


def test_a_shape_without_a_batch_is_noticed() -> None:
    model = classifier()
    model.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.array([-1, 64]), "flat"))
    with pytest.raises(AssertionError, match="no batch of one"):
        models.with_batch(model, 3)


@pytest.mark.parametrize("batch", [1, 2])
def test_unpooling_is_scattering(batch: int) -> None:
    x = np.random.default_rng(2).standard_normal((batch, 2, 6, 4)).astype(np.float32)
    plain = models.without_unpool(models.with_batch(unpooling(), batch))
    assert all(n.op_type != "MaxUnpool" for n in plain.graph.node)
    want, got = tw.compile(models.with_batch(unpooling(), batch)), tw.compile(plain)
    np.testing.assert_array_equal(got(x), want(x))


def test_pytorch_from_onnx() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(3).standard_normal((1, 3, 8, 8)).astype(np.float32)
    net = script("torch_onnx").module(classifier())
    with torch.no_grad():
        y = net(torch.from_numpy(x)).numpy()
    # probabilities of sums of at most 64 float32 products
    np.testing.assert_allclose(tw.compile(classifier())(x), y, rtol=0, atol=64 * 2**-23)


def test_pytorch_lacks_an_operator() -> None:
    pytest.importorskip("torch")
    with pytest.raises(NotImplementedError, match="MaxUnpool"):
        script("torch_onnx").module(unpooling())
