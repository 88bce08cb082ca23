"""Saved programs taken apart and sealed again: what an attacker could write."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any


def reseal(path: Path, members: dict[str, bytes], compress: bool = False) -> Path:
    """An archive with a valid checksum, whatever it holds: what an attacker could write."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else 0) as z:
        for name, data in members.items():
            z.writestr(name, data)
        z.comment = b"tilewright artifact sha256 of MiB's crc32:" + b"0" * 64
    return signed(path)


def signed(path: Path) -> Path:
    """The archive with its checksum set right."""
    data = path.read_bytes()[:-64]
    whole = data[: -len(b"tilewright artifact sha256 of MiB's crc32:")]
    parts = (whole[k : k + (1 << 20)] for k in range(0, len(whole), 1 << 20))
    leaves = b"".join(zlib.crc32(part).to_bytes(4, "little") for part in parts)
    path.write_bytes(data + hashlib.sha256(leaves).hexdigest().encode())
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as z:
        return {name: z.read(name) for name in z.namelist()}


def edited(saved: Path, path: Path, **changes: Any) -> Path:
    parts = members(saved)
    manifest = json.loads(parts["manifest.json"]) | changes
    return reseal(path, parts | {"manifest.json": json.dumps(manifest).encode()})
