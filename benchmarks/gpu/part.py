"""One part of the benchmark in a process of its own; `check.py` starts them. Rows are JSON, a line
each, on standard output: {"at": ...} says what comes next, so that whoever reads knows what a
process was at when it was lost.

    python benchmarks/gpu/part.py rung 12 | calibration
    python benchmarks/gpu/part.py family gpu_mma --seed 7 --first 3
    python benchmarks/gpu/part.py kernels products
    python benchmarks/gpu/part.py model resnet50 --batch 32 --precision bf16 --autotune
    python benchmarks/gpu/part.py copying | launching | about | files
    python benchmarks/gpu/part.py prepare products --arch sm_90     # no device: fills the store
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import beside  # noqa: E402
import calibration  # noqa: E402
import families  # noqa: E402
import ladder  # noqa: E402
import models  # noqa: E402
import networks  # noqa: E402

import tilewright as tw  # noqa: E402
from tilewright.compiler.runtime.cuda_device import all_facts  # noqa: E402
from tilewright.compiler.runtime.cuda_driver import driver  # noqa: E402

Row = dict[str, Any]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("part", choices=("about", "rung", "calibration", "family", "kernels", "model",
                                    "copying", "launching", "files", "prepare"))  # fmt: skip
    p.add_argument("name", nargs="?", default="")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--first", type=int, default=0, help="cases of a family to leave out")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--precision", default="f32", choices=tuple(networks.PRECISIONS))
    p.add_argument("--autotune", action="store_true")
    p.add_argument("--arch", default="sm_90")
    args = p.parse_args()
    for row in rows(args):
        print(json.dumps(row), flush=True)


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """What a part has to say."""
    if args.part == "family":
        return families.check(args.name, args.seed, args.first)
    if args.part == "prepare":
        return prepared(args.name, args.arch, args.seed)
    if args.part == "about":
        return about()
    if args.part == "rung":
        return ladder.climb(int(args.name))
    if args.part == "calibration":
        return calibration.measured()
    if args.part == "files":
        return files(args.name)
    from lab import TorchLab

    if args.part == "kernels":
        return beside.timed(beside.SETS[args.name], TorchLab)
    if args.part == "copying":
        return beside.copying(TorchLab())
    if args.part == "launching":
        return networks.launching(TorchLab())
    lab = networks.TorchModels(args.precision == "tf32")
    return networks.compared(args.name, args.batch, args.precision, lab, args.autotune)


def about() -> Iterator[Row]:
    """The device as the driver describes it, and what is installed."""
    found = all_facts()[0]
    major, minor = driver().version
    row = {"at": "about", "device": found.name, "arch": found.arch, "driver": f"{major}.{minor}",
           "multiprocessors": found.multiprocessors, "clock_khz": found.clock_khz,
           "memory_clock_khz": found.memory_clock_khz, "bus_bits": found.bus_bits,
           "l2_bytes": found.l2_bytes, "memory_bytes": found.memory_bytes}  # fmt: skip
    yield row | {"installed": installed(), "rungs": ladder.names()}


def installed() -> dict[str, str]:
    """Versions of what takes part; "missing" where it does not."""
    import importlib.metadata as metadata

    found = {}
    for name in ("torch", "triton", "numba", "numba-cuda", "llvmlite", "numpy", "onnx",
                 "onnxruntime-gpu", "nvidia-nvjitlink"):  # fmt: skip
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def files(name: str) -> Iterator[Row]:
    """A model's files, made now if they are not there yet: that takes no device."""
    for batch in (1, 32):
        for precision in ("f32", "bf16"):
            yield {"at": f"the files of {name}"}
            networks.of_precision(name, batch, precision)
    models.sample(name)


def prepared(name: str, arch: str, seed: int) -> Iterator[Row]:
    """Code that later parts find in the store."""
    target = f"cuda:{arch}"
    if name == "ladder":
        yield from ladder.prepare(arch)
    elif name == "calibration":
        yield from calibration.prepare(arch)
    elif name == "launching":
        for count in networks.CHAINS:
            yield {"at": f"{count} small kernels"}
            tw.compile(networks.chain(count), target=target)
    elif name in families.CASES:
        yield from families.prepare(name, seed, arch)
    elif name in beside.SETS:
        for t in beside.SETS[name]:
            yield {"at": t.name}
            tw.compile(t.graph(), target=target, numerics=t.numerics)
    else:
        for batch in (1, 32):
            for precision in networks.COMPARED:
                yield {"at": f"{name} x{batch} {precision}"}
                file = networks.of_precision(name, batch, precision)
                tw.compile(file, target=target, numerics=networks.PRECISIONS[precision])


if __name__ == "__main__":
    main()
