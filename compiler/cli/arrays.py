"""Arrays from files and into files. No pickle on either way."""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..api.executable import random_input
from ..errors import InputError
from ..runtime.program import TensorSpec

Array = npt.NDArray[Any]


def add_input_arguments(p: argparse.ArgumentParser) -> None:
    """--input and --seed, for commands that run a program on anything that fits."""
    p.add_argument("--input", "-i", action="append", default=[], metavar="name=file.npy",
                   help="an input; the others are random")  # fmt: skip
    p.add_argument("--seed", type=int, default=0, metavar="N", help="for random inputs")


def inputs_of(args: argparse.Namespace, specs: Sequence[TensorSpec]) -> list[Array]:
    """What these arguments say, in the order of the inputs. Raises InputError."""
    feeds = read_inputs(args.input, specs)
    for k, spec in enumerate(specs):
        feeds.setdefault(spec.name, random_input(spec, args.seed + k))
    return [feeds[s.name] for s in specs]


def read_inputs(given: Sequence[str], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Inputs by name from `name=file.npy`, or from `file.npz` with arrays under the inputs' names;
    where the program has one input, from `file.npy` too.

    Raises InputError for a file that is no array and for names given twice or unknown.
    """
    feeds: dict[str, Array] = {}
    names = [s.name for s in specs]
    for text in given:
        name, equals, file = text.rpartition("=")
        if equals and os.path.exists(text):
            name, equals, file = "", "", text
        content = _load(file)
        if isinstance(content, dict) and name:
            if name not in content:
                raise InputError(f"{file!r} has no array {name!r}; it has {', '.join(content)}")
            found = {name: content[name]}
        elif isinstance(content, dict):
            found = content
        elif name or len(names) == 1:
            found = {name or names[0]: content}
        else:
            raise InputError(f"--input {text!r}: say which input it is, of {', '.join(names)}: "
                             f"--input name={file}")  # fmt: skip
        for n, array in found.items():
            if n not in names:
                raise InputError(f"there is no input {n!r}; the inputs are {', '.join(names)}")
            if n in feeds:
                raise InputError(f"input {n!r} is given twice")
            feeds[n] = array
    return feeds


def _load(file: str) -> Array | dict[str, Array]:
    """The array of an .npy file, or all of an .npz file. Raises InputError, OSError."""
    try:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return {n: content[n] for n in content.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, AttributeError) as e:
        # what is no array at all, numpy takes for a pickle, and says how to open it
        why = "" if "allow_pickle" in str(e) else f": {e}"
        raise InputError(f"{file!r} is no .npy or .npz file of plain arrays{why}") from e


def write_outputs(path: str, arrays: Mapping[str, Array]) -> None:
    """One array into `.npy`, or all by name into `.npz`. The file appears whole or not at all.

    Raises InputError for another suffix or several arrays for `.npy`, OSError.
    """
    target = Path(path)
    check_output(path, len(arrays))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if target.suffix == ".npy":
            with open(partial, "xb") as f:
                np.lib.format.write_array(f, next(iter(arrays.values())), allow_pickle=False)
        else:  # numpy.savez takes names as keywords, and some names are taken
            with open(partial, "xb") as f, zipfile.ZipFile(f, "w") as z:
                for name, array in arrays.items():
                    with z.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def check_output(path: str, count: int) -> None:
    """Whether `count` arrays can go into `path`. Raises InputError."""
    suffix = Path(path).suffix
    if suffix not in (".npy", ".npz"):
        raise InputError(f"--out {path!r}: expected a name that ends in .npz or .npy")
    if suffix == ".npy" and count != 1:
        raise InputError(f"--out {path!r}: {count} outputs need an .npz file")
