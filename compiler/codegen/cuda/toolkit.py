"""The parts of NVIDIA's toolkit that are of use, each where a package or a toolkit has put it."""

from __future__ import annotations

import os
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_PLACES: Final = {
    "libdevice": ("nvvm/libdevice/libdevice.*.bc",),
    "nvJitLink": ("lib/libnvJitLink.so.*", "lib64/libnvJitLink.so.*", "bin/nvJitLink*.dll"),
    "nvdisasm": ("bin/nvdisasm*",),
    "ptxas": ("bin/ptxas*",),
}
_USUAL: Final = Path("/usr/local/cuda")
INSTALL: Final = "pip install 'tilewright[cuda]'"


@cache
def part(name: str) -> Path | None:
    """A file of the toolkit: "libdevice", "nvJitLink", "nvdisasm" or "ptxas"; None where it is
    missing."""
    found = [f for r in _roots() for p in _PLACES[name] for f in sorted(r.glob(p))]
    on_path = shutil.which(name)
    return found[-1] if found else Path(on_path) if on_path else None


def _roots() -> list[Path]:
    """Toolkits: the one in the usual place, that of `nvcc`, those that the environment names, and
    those of packages last."""
    compiler = shutil.which("nvcc")
    roots = [_USUAL, *([Path(compiler).resolve().parents[1]] if compiler else [])]
    roots += [Path(os.environ[n]) for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        roots += sorted(p for p in Path(folder).iterdir() if p.is_dir())
    return roots
