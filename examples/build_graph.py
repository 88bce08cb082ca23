"""Build a small convolutional network with `tw.Graph`, compile it, compare it with numpy."""

from __future__ import annotations

import numpy as np

import tilewright as tw
from tilewright.compiler.graph.evaluate import evaluate


def network() -> tw.Graph:
    """Two convolutions with a residual connection, pooled, and a classifier of ten classes."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        fan = np.prod(shape[1:])
        return (rng.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)

    g = tw.Graph("residual")
    x = g.input("image", (1, 3, 32, 32))
    stem = g.relu(g.conv(x, g.parameter("w1", weights(16, 3, 3, 3)), pads=1))
    y = g.conv(stem, g.parameter("w2", weights(16, 16, 3, 3)), pads=1, name="second")
    y = g.relu(y + stem)
    y = g.max_pool(y, kernel_shape=(2, 2), strides=2)
    y = g.reshape(g.global_average_pool(y), shape=(1, 16))
    y = g.softmax(y @ g.parameter("w3", weights(10, 16).T), axis=-1)
    g.output(y, "probabilities")
    return g


def main() -> None:
    g = network()
    exe = tw.compile(g)
    assert isinstance(exe, tw.Executable)
    print(exe)

    image = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    probabilities = exe(image=image)
    truth = evaluate(g.build(), {"image": image})["probabilities"]
    error = float(np.abs(probabilities - truth).max())
    print("probabilities:", np.array2string(probabilities[0], precision=3))
    print(f"largest difference from float64 numpy: {error:.1e}")
    assert error < 1e-6

    try:
        g.conv(g.input("gray", (1, 1, 32, 32)), g.parameter("w4", np.zeros((8, 3, 3, 3), "f4")))
    except tw.TilewrightError as e:
        print("a mistake is reported where it is made:", e)


if __name__ == "__main__":
    main()
