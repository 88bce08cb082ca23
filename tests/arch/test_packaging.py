"""What a wheel holds: every package, every data file, nothing of the tests."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

import tilewright

from .imports import python_files

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("autotune", "compiler", "ops")


def packages_in(root: Path) -> list[str]:
    """Dotted names of the folders that hold Python files, the root called `tilewright`."""
    folders = {path.parent for folder in FOLDERS for path in python_files(root / folder)}
    return ["tilewright", *sorted(_dotted(folder, root) for folder in folders)]


def folders_without_init(root: Path) -> list[str]:
    """Folders whose files could be imported in a clone, but would be missing from a wheel."""
    return [
        str(path.parent.relative_to(root))
        for folder in FOLDERS
        for path in python_files(root / folder)
        if not (path.parent / "__init__.py").exists()
    ]


def unlisted_data(root: Path, package_data: dict[str, list[str]]) -> list[str]:
    """Files in packages that are no Python and match no pattern of `package-data`."""
    missing = []
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.is_dir() or path.suffix == ".py" or "__pycache__" in path.parts:
                continue
            patterns = package_data.get(_dotted(path.parent, root), [])
            if not any(fnmatch(path.name, pattern) for pattern in patterns):
                missing.append(str(path.relative_to(root)))
    return missing


def _dotted(folder: Path, root: Path) -> str:
    return ".".join(("tilewright", *folder.relative_to(root).parts))


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed(project: dict) -> None:
    assert project["tool"]["setuptools"]["packages"] == packages_in(ROOT)
    assert folders_without_init(ROOT) == []


def test_every_data_file_is_listed(project: dict) -> None:
    package_data = project["tool"]["setuptools"]["package-data"]
    assert unlisted_data(ROOT, package_data) == []
    assert "py.typed" in package_data["tilewright"]
    assert (ROOT / "py.typed").exists()


def test_one_version_everywhere(project: dict) -> None:
    assert tilewright.__version__ == project["project"]["version"]


def test_the_console_script_exists(project: dict) -> None:
    module, _, function = project["project"]["scripts"]["tilewright"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_licence_is_the_one_that_is_named(project: dict) -> None:
    assert project["project"]["license"] == "Apache-2.0"
    assert "Apache License\n" in (ROOT / "LICENSE").read_text()


def test_omissions_are_found(tmp_path: Path) -> None:
    for name in ("ops/__init__.py", "autotune/__init__.py", "compiler/__init__.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "compiler/new/deep").mkdir(parents=True)
    (tmp_path / "compiler/new/deep/thing.py").touch()
    (tmp_path / "ops/table.json").touch()
    (tmp_path / "ops/notes.txt").touch()
    assert packages_in(tmp_path) == [
        "tilewright",
        "tilewright.autotune",
        "tilewright.compiler",
        "tilewright.compiler.new.deep",
        "tilewright.ops",
    ]
    assert folders_without_init(tmp_path) == ["compiler/new/deep"]
    assert unlisted_data(tmp_path, {"tilewright.ops": ["*.json"]}) == ["ops/notes.txt"]


@pytest.mark.slow
def test_a_wheel_built_in_an_oddly_named_folder_holds_the_package_alone(tmp_path: Path) -> None:
    clone = tmp_path / "tmp.x1"
    shutil.copytree(
        ROOT, clone, symlinks=True, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info")
    )
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, clone]
    subprocess.run(command, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    paths = [*ROOT.glob("*.py"), *(path for each in FOLDERS for path in python_files(ROOT / each))]
    wanted = {f"tilewright/{path.relative_to(ROOT).as_posix()}" for path in paths}
    page = ROOT / "compiler/inspect/page"
    data = {"py.typed", *(str(path.relative_to(ROOT)) for kind in ("js", "css", "html")
                          for path in page.glob(f"*.{kind}"))}  # fmt: skip
    assert len(data) > 3 and held == wanted | {f"tilewright/{name}" for name in data}
