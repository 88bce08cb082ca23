"""Native code for kernels: from the store when it was built before, else built now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from ...ops import expr
from ..codegen.cpu import arithmetic, assemble, llvm_text, lower, registers, vector_math
from ..codegen.cpu.assemble import build_object
from ..codegen.cpu.link import Linked, link
from ..codegen.cpu.target import CpuTarget
from ..kernels.ir import Kernel
from ..kernels.printer import symbol, text_digest
from ..store import Key, Store, source_digest


@dataclass(frozen=True, slots=True)
class Objects:
    """Linked code. `built` of `total` kernels were compiled; the others came from the store."""

    linked: Linked
    symbols: Mapping[int, tuple[str, ...]]
    built: int
    total: int

    def addresses(self, kernel: Kernel) -> tuple[int, ...]:
        """The entry of every phase of a kernel."""
        return tuple(self.linked.address(n) for n in self.symbols[id(kernel)])


@cache
def codegen_fingerprint() -> str:
    """A hash of the source that decides what code comes out: a change to it makes new entries."""
    modules = (expr, arithmetic, assemble, llvm_text, lower, registers, vector_math)
    return source_digest(Path(str(module.__file__)) for module in modules)


def object_key(kernel: Kernel, target: CpuTarget) -> tuple[tuple[str, str], ...]:
    """Everything that decides the bytes of one kernel's object code. The kernel's text is in it by
    its SHA-256, which is known also of kernels that are not written again."""
    fields = {"what": "cpu kernel", "symbol": symbol(kernel), "text": text_digest(kernel),
              "codegen": codegen_fingerprint()}  # fmt: skip
    fields |= {k: str(v) for k, v in target.fingerprint.items()}
    return tuple(fields.items())


def load(
    kernels: Iterable[Kernel],
    target: CpuTarget,
    store: Store,
    progress: Callable[[int, int], None] | None = None,
) -> Objects:
    """Get object code for all kernels and link it. Equal kernels share code.

    progress(done, total) is called as kernels become ready. Raises LoweringError.
    """
    everything = tuple(kernels)
    names = {id(k): symbol(k) for k in everything}
    unique = {names[id(k)]: k for k in everything}
    objects, built = [], 0
    for done, kernel in enumerate(unique.values(), 1):
        key = object_key(kernel, target)
        found = store.get(key)
        if found is None:
            found = build_object(lower.module_text(kernel, target.arithmetic), target)
            store.put(key, found)
            built += 1
        objects.append(found)
        if progress is not None:
            progress(done, len(unique))
    exports = {name: lower.phase_symbols(k) for name, k in unique.items()}
    linked = link(objects, [s for names_ in exports.values() for s in names_])
    table = MappingProxyType({k: exports[n] for k, n in names.items()})
    return Objects(linked, table, built, len(unique))


def members(kernels: Iterable[Kernel], target: CpuTarget) -> Iterator[tuple[str, Key, bytes]]:
    """Every distinct kernel's object file for a saved program: a name, what decides whether it
    fits, and its code, from the store or built again. Raises LoweringError."""
    store = Store()
    for name, kernel in {symbol(k): k for k in kernels}.items():
        key = object_key(kernel, target)
        code = store.get(key)
        if code is None:
            code = build_object(lower.module_text(kernel, target.arithmetic), target)
        yield f"{name}.o", key, code
