"""Seven networks as people write them in PyTorch, seeded and calibrated; `export(name)` gives ONNX.

Nothing is downloaded: weights are random, and batch norms hold the statistics of a random batch.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

Array = npt.NDArray[Any]
OPSET: Final = 17


def conv_norm(i: int, o: int, k: int = 3, stride: int = 1, relu: bool = True) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(i, o, k, stride, k // 2), nn.BatchNorm2d(o)]
    return [*layers, nn.ReLU()] if relu else layers


class VGGCifar(nn.Module):
    """VGG-16 with batch norm for 32x32 images: 13 convolutions, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c = 3
        for repeat, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(repeat):
                layers += conv_norm(c, width)
                c = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(512, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x))
        return y


class GRUSent(nn.Module):
    """Sentiment of a text: embedding, one GRU, a linear layer on its last state."""

    def __init__(self, vocabulary: int = 30_000, width: int = 125, hidden: int = 100) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(self.embedding(x))
        out: Tensor = self.out(y[:, -1])
        return out


class SegNet(nn.Module):
    """An encoder whose pooling indices steer the decoder's unpooling."""

    def __init__(self, classes: int = 12) -> None:
        super().__init__()
        widths = [(3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3)]
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for i, o, n in widths:
            layers: list[nn.Module] = []
            for k in range(n):
                layers += conv_norm(i if k == 0 else o, o)
            self.encoder.append(nn.Sequential(*layers))
        for stage, (i, o, n) in enumerate(reversed(widths)):
            layers = []
            for _ in range(n - 1):
                layers += conv_norm(o, o)
            final = stage == len(widths) - 1
            layers += [nn.Conv2d(o, classes, 3, 1, 1)] if final else conv_norm(o, i)
            self.decoder.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        stack = []
        for e in self.encoder:
            x = e(x)
            size = x.shape[-2:]
            x, indices = F.max_pool2d(x, 2, 2, return_indices=True)
            stack.append((indices, size))
        for d in self.decoder:
            indices, size = stack.pop()
            x = d(F.max_unpool2d(x, indices, 2, 2, output_size=list(size)))
        return x


class Block(nn.Module):
    """A transformer encoder block, norms first."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        a = F.scaled_dot_product_attention(q, k, v)
        x = x + self.project(a.transpose(1, 2).reshape(b, t, d))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class Transformer(nn.Module):
    def __init__(self, layers: int = 4, width: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Block(width, heads, 4 * width) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.blocks(x))
        return y


class MLP(nn.Module):
    def __init__(self, width: int = 784, hidden: int = 1024, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(layers):
            parts += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU()]
            width = hidden
        self.net = nn.Sequential(*parts, nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class InvertedResidual(nn.Module):
    """A pointwise expansion, a depthwise convolution, a linear projection."""

    def __init__(self, i: int, o: int, stride: int, expand: int) -> None:
        super().__init__()
        self.residual = stride == 1 and i == o
        wide = i * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [nn.Conv2d(i, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        layers += [
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, o, 1, bias=False), nn.BatchNorm2d(o),
        ]  # fmt: skip
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """MobileNetV2 of width 1: 17 inverted residual blocks."""

    BLOCKS: Final = (  # expansion, channels, repeats, stride of the first
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
        ]  # fmt: skip
        c = 32
        for expand, width, repeat, stride in self.BLOCKS:
            for k in range(repeat):
                layers.append(InvertedResidual(c, width, stride if k == 0 else 1, expand))
                c = width
        layers += [nn.Conv2d(c, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        y: Tensor = self.classifier(x)
        return y


class DigitNet(nn.Module):
    """A residual block on 28x28 digits, with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(1, 16, 5))
        self.branch = nn.Sequential(*conv_norm(16, 32, 3, 2), *conv_norm(32, 32, 3, 1, relu=False))
        self.skip = nn.Sequential(*conv_norm(16, 32, 1, 2, relu=False))
        self.digit = nn.Linear(32 * 14 * 14, 10)
        self.real = nn.Linear(32 * 14 * 14, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x = F.relu(self.branch(x) + self.skip(x)).flatten(1)
        return F.softmax(self.digit(x), 1), self.real(x)


MODELS: Final[dict[str, Callable[[], nn.Module]]] = {
    "digitnet": DigitNet,
    "gru_sent": GRUSent,
    "mlp": MLP,
    "mobilenet": MobileNet,
    "segnet": SegNet,
    "transformer": Transformer,
    "vgg_cifar": VGGCifar,
}
SHAPES: Final = {
    "digitnet": (1, 28, 28),
    "gru_sent": (150,),
    "mlp": (784,),
    "mobilenet": (3, 224, 224),
    "segnet": (3, 360, 480),
    "transformer": (128, 256),
    "vgg_cifar": (3, 32, 32),
}


def make_input(name: str, batch: int = 1, seed: int = 7) -> Array:
    rng = np.random.default_rng(seed)
    shape = (batch, *SHAPES[name])
    if name == "gru_sent":
        return rng.integers(0, 30_000, shape)
    return rng.standard_normal(shape).astype(np.float32)


def build(name: str) -> nn.Module:
    """The network in evaluation mode, with the same weights each time."""
    torch.manual_seed(sum(map(ord, name)))
    net = MODELS[name]()
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, layer.in_features**-0.5)
        elif isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.normal_(layer.weight, 1, 0.1)
            nn.init.normal_(layer.bias, 0, 0.1)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.normal_(layer.bias, 0, 0.05)
    if norms:
        for norm in norms:
            norm.momentum = 1.0  # one batch sets the statistics
        net.train()
        with torch.no_grad():
            net(torch.from_numpy(make_input(name, 1 if name == "segnet" else 16, 3)))
    return net.eval()


def export(name: str) -> bytes:
    """The network as an ONNX model."""
    net = build(name)
    if isinstance(net, SegNet):
        return _segnet(net)
    args = (torch.from_numpy(make_input(name)),)
    outputs = ["y", "r"] if name == "digitnet" else ["y"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces its newer exporter
        buffer = io.BytesIO()
        torch.onnx.export(net, args, buffer, input_names=["x"], output_names=outputs,
                          opset_version=OPSET, dynamo=False)  # fmt: skip
    return buffer.getvalue()


def _segnet(net: SegNet) -> bytes:
    """By hand, with MaxUnpool: torch writes scatters for it."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def fresh(stem: str) -> str:
        return f"{stem}_{len(nodes) + len(weights)}"

    def weight(t: Tensor) -> str:
        weights.append(numpy_helper.from_array(t.detach().numpy(), fresh("w")))
        return weights[-1].name

    def node(kind: str, inputs: Sequence[str], outputs: int = 1, **attrs: Any) -> list[str]:
        names = [f"{fresh(kind)}_{k}" for k in range(outputs)]
        nodes.append(helper.make_node(kind, inputs, names, **attrs))
        return names

    def block(x: str, layers: nn.Sequential) -> str:
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                ins = [x, weight(layer.weight), weight(layer.bias)]
                (x,) = node("Conv", ins, kernel_shape=[3, 3], pads=[1] * 4)
            elif isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None and layer.running_var is not None
                held = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
                ins = [x, *map(weight, held)]
                (x,) = node("BatchNormalization", ins, epsilon=layer.eps)
            else:
                (x,) = node("Relu", [x])
        return x

    channels, height, width = SHAPES["segnet"]
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    x, stack = "x", []
    for e in net.encoder:
        assert isinstance(e, nn.Sequential)
        x = block(x, e)
        shape = torch.tensor([1, e[0].out_channels, height, width])
        x, indices = node("MaxPool", [x], 2, **window)
        stack.append((shape, indices))
        height, width = height // 2, width // 2
    for d in net.decoder:
        assert isinstance(d, nn.Sequential)
        shape, indices = stack.pop()
        (x,) = node("MaxUnpool", [x, indices, weight(shape)], **window)
        x = block(x, d)
    nodes[-1].output[0] = "y"
    height, width = SHAPES["segnet"][1:]
    graph = helper.make_graph(
        nodes,
        "segnet",
        [helper.make_tensor_value_info("x", 1, [1, channels, height, width])],
        [helper.make_tensor_value_info("y", 1, [1, 12, height, width])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
