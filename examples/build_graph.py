"""Build a network with tw.Graph, compile it, and compare with numpy.

python examples/build_graph.py
"""

from __future__ import annotations

import numpy as np

import tilewright as tw
from tilewright.compiler.graph.evaluate import evaluate


def residual_net(rng: np.random.Generator) -> tw.Graph:
    """A stem, two residual blocks, and a classifier."""

    def weight(name: str, *shape: int) -> np.ndarray:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return g.parameter(name, (rng.standard_normal(shape) * scale).astype(np.float32))

    g = tw.Graph("residual_net")
    x = g.input("image", (1, 3, 32, 32))
    h = g.relu(g.conv(x, weight("stem", 32, 3, 3, 3), pads=1))
    for k in (1, 2):
        z = g.relu(g.conv(h, weight(f"a{k}", 32, 32, 3, 3), pads=1, name=f"block{k}/a"))
        z = g.conv(z, weight(f"b{k}", 32, 32, 3, 3), pads=1, name=f"block{k}/b")
        h = g.relu(h + z)
    pooled = g.flatten(g.global_average_pool(h))
    logits = g.gemm(pooled, weight("classes", 10, 32), transb=1)
    g.output(g.softmax(logits, axis=-1), name="prob")
    return g


def main() -> None:
    rng = np.random.default_rng(0)
    g = residual_net(rng)
    exe = tw.compile(g)
    image = rng.standard_normal((1, 3, 32, 32), dtype=np.float32)

    prob = exe(image)
    truth = evaluate(g.build(), {"image": image})["prob"]
    print(f"{len(g.build().ops)} ops became {len(exe.kernels)} kernels")
    print("probabilities", np.round(prob[0], 4))
    print(f"largest difference from float64: {np.abs(prob - truth).max():.1e}")


if __name__ == "__main__":
    main()
