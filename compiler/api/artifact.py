"""The file that `exe.save` writes and `tw.load` reads.

A zip archive, stored without compression, that any zip tool opens:

    manifest.json          format, versions, options, target, and what the other members hold
    graph.txt              the graph after all passes, in its text form
    constants/00000.npy    its arrays, in numpy's own format, each from a cache line on
    packed/00000.npy       the same weights as kernels read them
    objects/<symbol>.o     native code, one object file per distinct kernel; of kernels for GPUs
                           <symbol>.ptx, .cubin (where it was made), and .json (their grids)
    kernels.json           which kernels run, in case they are chosen again

Reading maps the file, and programs read their constants there: all processes that load a file share
its pages, and nothing is packed. Where this version or machine packs otherwise, it does so anew,
from `constants`, which takes memory of its own. The archive's comment carries a SHA-256 of the
CRC-32 of every MiB before it: damage anywhere is noticed, and threads share out the work, which is
most of what loading costs.
Nothing is ever unpickled. But native code is native code: a checksum says that a file is whole, not
who made it. Load what you would also run.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import ArtifactError, GraphError
from ..graph.arrays import ALIGNMENT
from ..graph.ir import Graph, content_digest
from ..graph.mapped import MappedFile, contents
from ..graph.text import parse, to_text
from ..graph.verify import verify
from ..inspect.views import Compilation
from ..kernels.ir import Prepared
from ..options import VERSION
from ..runtime.constants import Constant, Ready, constants_of, packing_fingerprint
from ..runtime.threads import available_processors
from ..store import Key

Array = npt.NDArray[Any]
Buffer = bytes | memoryview
Code = Iterable[tuple[str, Key, bytes]]
"""Native code: names of files, what decides whether they fit, and what is in them."""

FORMAT: Final = 4
_COMMENT: Final = b"tilewright artifact sha256 of MiB's crc32:"
_COMMENT_BYTES: Final = len(_COMMENT) + 64
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # equal programs make equal files
_CHUNK: Final = 1 << 20
_LOCAL_HEADER: Final = 30  # bytes of a zip member's header before its name
_ZIP64_FIELD: Final = 20  # what zipfile adds to the header when asked for zip64
_FIELD_HEAD: Final = 4  # id and length of an extra field
_ALIGNING: Final = 0xD935  # id of the extra field that other tools align members with
_NUMPY_HEADER: Final = 10 + 0xFFFF  # most bytes before the data of an array
_NOTHING: Final[Mapping[Constant, Array]] = MappingProxyType({})
_log: Final = logging.getLogger("tilewright")
_BROKEN: Final = (
    zipfile.BadZipFile, struct.error, ValueError, TypeError, LookupError, AttributeError,
    ArithmeticError, EOFError, RuntimeError, MemoryError, GraphError,
)  # fmt: skip
"""What reading a malformed archive may end in, beside OSError."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a file held, verified. label: how messages call it. entries: of the store, by the digest
    of their key. ready: constants as kernels read them, in the file; none that other code than this
    packed. choices: of configs other than defaults, as `tuning.choices.to_data` gives them."""

    label: str
    graph: Graph
    version: str
    numerics: str
    memory_limit: int | None
    threads: int | None
    donate: tuple[str, ...]
    target: Mapping[str, str | int]
    choices: Mapping[str, Any]
    entries: Mapping[str, bytes]
    ready: Ready

    def get(self, key: Key) -> bytes | None:
        """The entry with a key, if it is there."""
        return self.entries.get(key_digest(key))

    def malformed(self, what: str, e: Exception) -> ArtifactError:
        """The error about a part of it that is none."""
        return ArtifactError(f"{self.label} is malformed: {what} ({type(e).__name__}: {e}); compile"
                             " the model again")  # fmt: skip


def key_digest(key: Key) -> str:
    """What decides whether an entry fits: the hash of everything that decides its bytes."""
    return hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a zip archive, as no model is."""
    try:
        with open(path, "rb") as f:
            return f.read(4) == b"PK\x03\x04"
    except OSError:
        return False


# --------------------------------------------------------------------------- writing


def write(
    path: str | os.PathLike[str], c: Compilation[Any], code: Code,
    packed: Mapping[Constant, Array] = _NOTHING,
) -> None:  # fmt: skip
    """Save a compilation. The file appears whole or not at all; an older one is replaced.

    code: of its kernels. packed: constants as these read them, to be in the file as well. Raises
    ArtifactError when it cannot be written, ModelError when the model's file changed since, and
    what `code` raises.
    """
    for blob in c.graph.blobs.values():
        blob.check()
    target = Path(path)
    if target.exists() and not target.is_file() and not target.is_dir():
        # the new file would take the place of a device or a pipe, for all who use it
        raise ArtifactError(f"cannot save to {str(target)!r}: that is a device or a pipe, no file")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        try:
            with open(partial, "xb+") as f:
                _archive(f, c, code, packed)
                f.flush()
                os.fsync(f.fileno())
            os.replace(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise ArtifactError(f"cannot save to {str(target)!r}: {reason}") from e


def _archive(
    f: IO[bytes], c: Compilation[Any], code: Code, packed: Mapping[Constant, Array]
) -> None:  # fmt: skip
    with zipfile.ZipFile(f, "w", zipfile.ZIP_STORED) as z:
        needed = constants_of(c.graph, c.launches)
        direct = {what for what in needed if isinstance(what, str)}
        prepared = [what for what in needed if isinstance(what, Prepared) and what in packed]
        behind = {blob for what in prepared for blob in what.blobs} - direct
        constants = []
        for k, name in enumerate(n for n, b in c.graph.blobs.items() if b.is_constant):
            file = f"constants/{k:05d}.npy"
            value = c.graph.blobs[name].value
            assert value is not None
            splat = _is_splat(value)
            _add_array(z, file, value.reshape(-1)[:1] if splat else value)
            constants.append({"name": name, "file": file,
                              "splat": list(value.shape) if splat else None,
                              "digest": content_digest(value) if name in behind else None,
                              })  # fmt: skip
            c.graph.blobs[name].release()
        forms = []
        for k, what in enumerate(prepared):
            file = f"packed/{k:05d}.npy"
            _add_array(z, file, packed[what])
            forms.append({"blobs": list(what.blobs), "recipe": what.recipe, "file": file})
        objects = []
        for name, key, data in code:
            file = f"objects/{name}"
            _add(z, file, data)
            objects.append({"file": file, "key": key_digest(key)})
        kept = {"file": "kernels.json", "key": ""}
        if c.kept is not None:
            kept["key"] = key_digest(c.kept.key)
            _add(z, kept["file"], c.kept.records)
        _add(z, "graph.txt", to_text(c.graph).encode())
        manifest = {
            "format": FORMAT,
            "tilewright": VERSION,
            "options": {
                "numerics": c.options.numerics,
                "memory_limit": c.options.memory_limit,
                "threads": c.options.threads,
                "donate": list(c.options.donate),
            },
            "target": c.target.fingerprint,
            "choices": dict(c.choices),
            "constants": constants,
            "packing": packing_fingerprint(),
            "packed": forms,
            "objects": objects,
            "kernels": kept,
        }
        _add(z, "manifest.json", json.dumps(manifest, indent=1).encode())
        z.comment = _COMMENT + b"0" * 64
    end = f.seek(0, os.SEEK_END) - _COMMENT_BYTES

    def part(start: int, stop: int) -> bytes:
        f.seek(start)
        return f.read(stop - start)

    digest = _digest(part, end, threads=1)
    f.seek(end + len(_COMMENT))
    f.write(digest.encode())


def _is_splat(x: Array) -> bool:
    """Whether an array repeats one element without storing it (see `graph.text`)."""
    return x.size > 0 and x.ndim > 0 and not any(x.strides)


def _add(z: zipfile.ZipFile, name: str, data: bytes) -> None:
    z.writestr(_member(name), data)


def _add_array(z: zipfile.ZipFile, name: str, array: Array) -> None:
    info = _member(name)
    # numpy's header is a multiple of a cache line long; what stands before it is filled up to one
    before = z.fp.tell() + _LOCAL_HEADER + len(name) + _ZIP64_FIELD + _FIELD_HEAD  # type: ignore[union-attr]
    fill = -before % ALIGNMENT
    info.extra = struct.pack("<HH", _ALIGNING, fill) + bytes(fill)
    with z.open(info, "w", force_zip64=True) as f:
        np.lib.format.write_array(f, np.asarray(array, order="C"), allow_pickle=False)


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o644 << 16
    return info


def _digest(part: Callable[[int, int], Buffer], size: int, threads: int) -> str:
    """The checksum of bytes 0..size of what `part` gives any range of."""

    def leaf(start: int) -> bytes:
        stop = min(start + _CHUNK, size)
        data = part(start, stop)
        if len(data) != stop - start:
            raise EOFError
        return zlib.crc32(data).to_bytes(4, "little")  # without the interpreter's lock

    with ThreadPoolExecutor(threads) as pool:
        leaves = b"".join(pool.map(leaf, range(0, size, _CHUNK)))
    return hashlib.sha256(leaves).hexdigest()


# --------------------------------------------------------------------------- reading


def read(path: str | os.PathLike[str]) -> Saved:
    """Read and verify a saved program. Raises ArtifactError saying what is wrong with the file."""
    label = f"saved program {str(path)!r}"
    try:
        with open(path, "rb") as f:
            whole = contents(f, label)
            _check_whole(whole, label)
            try:
                with zipfile.ZipFile(f) as z:
                    return _unpack(_Members(z, memoryview(whole)), label)
            except _BROKEN as e:
                raise ArtifactError(
                    f"{label} is malformed ({type(e).__name__}: {e}); compile the model again"
                ) from e
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise ArtifactError(f"{label} cannot be read: {reason}") from e


def _check_whole(whole: MappedFile | bytes, label: str) -> None:
    if isinstance(whole, bytes):
        data = memoryview(whole)

        def part(start: int, stop: int) -> Buffer:
            return data[start:stop]
    else:
        part = whole.read_at  # copies, so that pages need not be mapped before they are used

    size = len(whole)
    if not b"PK\x03\x04".startswith(bytes(part(0, min(size, 4)))):
        raise ArtifactError(f"{label} was not saved by Tilewright: it is no zip archive; "
                            "models are for tw.compile")  # fmt: skip
    comment = bytes(part(max(0, size - _COMMENT_BYTES), size))
    if not re.fullmatch(re.escape(_COMMENT) + rb"[0-9a-f]{64}", comment):
        raise ArtifactError(
            f"{label} ({size} bytes) is truncated, damaged at its end, or was not saved by "
            f"Tilewright {VERSION}; compile the model again"
        )
    if (
        _digest(part, size - _COMMENT_BYTES, available_processors())
        != comment[len(_COMMENT) :].decode()
    ):
        raise ArtifactError(f"{label} is damaged: its checksum is wrong; compile the model again")


@dataclass(frozen=True, slots=True)
class _Members:
    """The archive's members, in the file's own bytes."""

    archive: zipfile.ZipFile
    whole: memoryview

    def __getitem__(self, name: str) -> memoryview:
        info = self.archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        names, extra = struct.unpack_from("<HH", self.whole, info.header_offset + 26)
        start = info.header_offset + _LOCAL_HEADER + names + extra
        found = self.whole[start : start + info.file_size]
        if len(found) != info.file_size:
            raise ValueError(f"{name} is cut off")
        return found


def _unpack(members: _Members, label: str) -> Saved:
    manifest = json.loads(bytes(members["manifest.json"]))
    if manifest["format"] != FORMAT:
        raise ArtifactError(
            f"{label} has format {manifest['format']!r}, written by Tilewright "
            f"{manifest.get('tilewright')!r}; this is {VERSION}, which reads format {FORMAT}. "
            "Compile the model again"
        )
    text = bytes(members["graph.txt"]).decode()
    arrays: dict[str, Array] = {}
    ready: dict[str | tuple[tuple[str, ...], str], Array] = {}
    digests: dict[str, str] = {}
    for item in manifest["constants"]:
        name, array, splat = item["name"], _array(members[item["file"]]), item["splat"]
        arrays[name] = array if splat is None else np.broadcast_to(array[0], splat)
        if splat is None:
            ready[name] = array
        if item["digest"] is not None:  # only what is packed of it is needed: do not touch it
            digests[name] = str(item["digest"])
    rest = [name for name in arrays if name not in digests]
    with ThreadPoolExecutor(available_processors()) as pool:
        found = pool.map(content_digest, (arrays[name] for name in rest))
        digests |= zip(rest, found, strict=True)
    graph = parse(text, arrays, digests)
    verify(graph)
    forms = manifest["packed"]
    if manifest["packing"] == packing_fingerprint():
        for item in forms:
            key = tuple(map(str, item["blobs"])), str(item["recipe"])
            ready[key] = _array(members[item["file"]])
    elif forms:
        _log.info("%s was packed by other code than this, which reads weights anew", label)
    options = manifest["options"]
    donate = tuple(options["donate"])
    if not set(donate) <= set(graph.inputs):
        raise ValueError(f"inputs {donate} are donated, but the graph has {graph.inputs}")
    kept = manifest["kernels"]
    entries = {
        str(e["key"]): bytes(members[e["file"]])
        for e in (*manifest["objects"], *([kept] if kept["key"] else ()))
    }
    return Saved(label, graph, str(manifest["tilewright"]), options["numerics"],
                 options["memory_limit"], options["threads"], donate, dict(manifest["target"]),
                 dict(manifest.get("choices", {})), entries, ready)  # fmt: skip


def _array(data: memoryview) -> Array:
    """An array of numpy's file format, read in place: no pickle, no size but that of the data."""
    f = io.BytesIO(data[:_NUMPY_HEADER])
    version = np.lib.format.read_magic(f)
    if version != (1, 0):
        raise ValueError(f"numpy file format {version} is not read")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(f)
    if dtype.hasobject or fortran:
        raise ValueError(f"an array of {dtype} in this order is not read")
    return np.frombuffer(data, dtype, offset=f.tell()).reshape(shape)
