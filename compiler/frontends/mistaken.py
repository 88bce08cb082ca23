"""What a file that was given as a model is instead, and what to do about it."""

from __future__ import annotations

from typing import Final

_BEGINNINGS: Final = (
    (b"version https://git-lfs", "it is a pointer of Git LFS in place of the file: git lfs pull"),
    (b"PK\x03\x04", "it is a zip archive: a program that was saved by Tilewright is opened by "
                    "tw.load, a model of PyTorch is exported by torch.onnx.export first"),
    (b"\x80", "it is a pickle: if it holds a model of PyTorch, export that by torch.onnx.export"),
    (b"\x89HDF", "it is an HDF5 file: convert a model of Keras by tf2onnx first"),
    (b"GGUF", "it is a GGUF file, which has weights, but no graph"),
    (b"\x1f\x8b", "it is compressed by gzip: unpack it first"),
    (b"<", "it is an HTML or XML page: has the download failed?"),
)  # fmt: skip

LENGTH: Final = 32
"""Bytes from the start of a file that are looked at."""


def mistaken(start: bytes) -> str:
    """What a file that is no ONNX model seems to be, by how it begins; "" if nobody knows."""
    if start[4:8] == b"TFL3":
        return "it is a model of TensorFlow Lite: convert it by tf2onnx first"
    if start[8:10] == b'{"':
        return "it is a safetensors file, which has weights, but no graph"
    return next((what for sign, what in _BEGINNINGS if start.startswith(sign)), "")
