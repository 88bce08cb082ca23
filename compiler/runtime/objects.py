"""Native code for kernels: from the store when it was built before, else built now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from ...ops import expr, traverse
from ..codegen.cpu import lower
from ..codegen.cpu.assemble import build_object
from ..codegen.cpu.link import Linked, link
from ..codegen.cpu.target import CpuTarget
from ..kernels import access
from ..kernels.ir import Kernel
from ..kernels.printer import kernel_text, symbol, text_digest
from ..store import Key, Store, source_digest
from .side_by_side import side_by_side


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
    used = (Path(str(module.__file__)) for module in (expr, traverse, access))
    return source_digest([*used, *sorted(Path(lower.__file__).parent.glob("*.py"))])


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
    threads: int = 1,
) -> Objects:
    """Get object code for all kernels and link it. Equal kernels share code; what the store does
    not have is built by so many threads.

    progress(done, total) is called as kernels become ready. Raises LoweringError.
    """
    everything = tuple(kernels)
    names = {id(k): symbol(k) for k in everything}
    unique = {names[id(k)]: k for k in everything}
    keys = {name: object_key(kernel, target) for name, kernel in unique.items()}
    objects = {name: found for name in unique if (found := store.get(keys[name])) is not None}

    def report(done: int) -> None:
        if progress is not None:
            progress(done, len(unique))

    def build(name: str) -> bytes:
        made = build_object(lower.module_text(unique[name], target.arithmetic), target)
        store.put(keys[name], made)
        return made

    for done in range(len(objects)):
        report(done + 1)
    missing = [name for name in unique if name not in objects]
    missing.sort(key=lambda name: len(kernel_text(unique[name])), reverse=True)  # shortest last
    with side_by_side(min(threads, len(missing))) as mapped:  # LLVM lets Python run beside it
        for name, made in zip(missing, mapped(build, missing), strict=True):
            objects[name] = made
            report(len(objects))
    exports = {name: lower.phase_symbols(k) for name, k in unique.items()}
    images = [objects[name] for name in unique]
    linked = link(images, [s for names_ in exports.values() for s in names_])
    table = MappingProxyType({k: exports[n] for k, n in names.items()})
    return Objects(linked, table, len(missing), len(unique))


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
