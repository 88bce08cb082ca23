"""The house rules: floors, no import cycle, no hidden import, no overlong file.

Each rule is checked on the project, and on small made-up trees that break it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .imports import (
    Source,
    cycle_problems,
    floor_problems,
    lazy_problems,
    length_problems,
    python_files,
    read_package,
)

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("ops", "autotune", "compiler")

# Who may import whom: only the own floor and those below. Ground floor first.
FLOORS = (
    ("ops", "autotune"),
    ("compiler.errors", "compiler.options", "compiler.text"),
    ("compiler.graph",),
    ("compiler.frontends", "compiler.passes"),
    ("compiler.memory", "compiler.kernels"),
    ("compiler.codegen",),
    ("compiler.store", "compiler.records", "compiler.runtime"),
    ("compiler.inspect",),
    ("compiler.tuning",),
    ("compiler.api",),
    ("compiler.cli",),
)
# On one floor, and yet neither knows of the other.
STRANGERS = ("ops", "autotune")

# What is imported where it is used, because it may be missing or because it is slow to load.
OPTIONAL = (
    "cuda",
    "distributed",
    "importlib",
    "ncnn",
    "numba",
    "onnx",
    "onnxruntime",
    "openvino",
    "safetensors",
    "tokenizers",
    "torch",
)
# What few programs need and takes long to load: tuning, code for GPUs, times, single kernels.
LATER = (
    "crew", "explaining", "gpu", "gpu_devices", "gpu_making", "gpu_repro", "making", "page",
    "repro", "slices", "timing", "tuning",
)  # fmt: skip
DEFERRED = (
    *(f"tilewright.compiler.api.{name}" for name in LATER), "tilewright.compiler.tuning.gpu_bench",
)  # fmt: skip
MAX_LINES = 600


@pytest.fixture(scope="module")
def sources() -> dict[str, Source]:
    found = read_package(ROOT, "tilewright", FOLDERS)
    assert {"tilewright", "tilewright.ops.types", "tilewright.compiler.errors"} <= set(found)
    return found


def show(problems: list[str]) -> str:
    return "\n" + "\n".join(problems)


def test_imports_only_go_down(sources: dict[str, Source]) -> None:
    problems = floor_problems(sources, "tilewright", FLOORS, STRANGERS)
    assert not problems, show(problems)


def test_no_import_cycle(sources: dict[str, Source]) -> None:
    problems = cycle_problems(sources)
    assert not problems, show(problems)


def test_no_import_inside_a_function(sources: dict[str, Source]) -> None:
    problems = lazy_problems(sources, (*OPTIONAL, *DEFERRED))
    assert not problems, show(problems)


def test_no_overlong_file() -> None:
    assert sum(1 for _ in python_files(ROOT)) > len(FOLDERS)
    problems = length_problems(ROOT, MAX_LINES)
    assert not problems, show(problems)


def tree(root: Path, files: dict[str, str]) -> dict[str, Source]:
    """Write `files` below `root`, each folder a package, and read them as the package `net`."""
    for name, text in {"__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(root).parents:
            (root / folder / "__init__.py").touch()
    return read_package(root, "net", FOLDERS)


def floors(root: Path, files: dict[str, str]) -> list[str]:
    return floor_problems(tree(root, files), "net", FLOORS, STRANGERS)


DOWNWARD = {
    "__init__.py": "from net.compiler.api import go\n",
    "__main__.py": "from .compiler.cli.main import main\n",
    "ops/types.py": "import numpy\n",
    "ops/conv.py": "from .types import DType\n",
    "compiler/errors.py": "",
    "compiler/graph/core.py": "from ...ops.types import DType\nfrom ..errors import GraphError\n",
    "compiler/passes/fuse.py": "from ..graph import core\nfrom ..frontends import onnx\n",
    "compiler/frontends/onnx.py": "from ..graph.core import Graph\n",
    "compiler/kernels/gemm.py": "from ..memory.plan import Arena\n",
    "compiler/memory/plan.py": "",
    "compiler/api.py": "from .passes.fuse import Fuse\nfrom .kernels import gemm\n",
    "compiler/cli/main.py": "from ..api import go\nfrom ..inspect.views import view\n",
    "compiler/inspect/views.py": "",
}


def test_a_sound_tree_passes(tmp_path: Path) -> None:
    sources = tree(tmp_path, DOWNWARD)
    assert floor_problems(sources, "net", FLOORS, STRANGERS) == []
    assert cycle_problems(sources) == []
    assert lazy_problems(sources, OPTIONAL) == []
    assert length_problems(tmp_path, MAX_LINES) == []


@pytest.mark.parametrize(
    ("path", "text", "target"),
    [
        ("ops/types.py", "from ..compiler.errors import GraphError", "net.compiler.errors"),
        ("ops/types.py", "from ..autotune import space", "net.autotune"),
        ("autotune/tuner.py", "import net.ops.types", "net.ops.types"),
        ("compiler/errors.py", "from .graph.core import Graph", "net.compiler.graph.core"),
        ("compiler/graph/core.py", "from ..passes import fuse", "net.compiler.passes.fuse"),
        ("compiler/memory/plan.py", "from ..api import go", "net.compiler.api"),
        ("compiler/inspect/views.py", "from ..cli import main", "net.compiler.cli.main"),
        ("compiler/api.py", "from .cli.main import main", "net.compiler.cli.main"),
        ("compiler/__init__.py", "from .api import go", "net.compiler.api"),
        ("compiler/passes/fuse.py", "from ... import face", "net"),
        ("compiler/errors.py", "def f():\n    from . import api", "net.compiler.api"),
        (
            "compiler/graph/core.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..api import go",
            "net.compiler.api",
        ),
    ],
)
def test_a_broken_floor_is_found(tmp_path: Path, path: str, text: str, target: str) -> None:
    problems = floors(tmp_path, {**DOWNWARD, path: text})
    assert len(problems) == 1
    assert f"imports {target}, " in problems[0]


def test_a_module_on_no_floor_is_found(tmp_path: Path) -> None:
    assert floors(tmp_path, {"compiler/cleverness.py": ""}) == [
        "net.compiler.cleverness is on no floor: add it to the table"
    ]


def test_a_name_that_starts_like_a_floor_is_not_that_floor(tmp_path: Path) -> None:
    problems = floors(tmp_path, {"compiler/graphics.py": ""})
    assert problems == ["net.compiler.graphics is on no floor: add it to the table"]


def test_a_cycle_of_modules_is_found(tmp_path: Path) -> None:
    sources = tree(
        tmp_path,
        {
            "ops/a.py": "from . import b\n",
            "ops/b.py": "try:\n    from .c import thing\nexcept ImportError:\n    thing = None\n",
            "ops/c.py": "from net.ops.a import other\n",
            "ops/d.py": "from .a import other\n",
        },
    )
    assert cycle_problems(sources) == ["import cycle: net.ops.a, net.ops.b, net.ops.c"]


def test_a_cycle_with_the_own_package_is_found(tmp_path: Path) -> None:
    files = {"ops/__init__.py": "from .a import f\n", "ops/a.py": "from . import registry\n"}
    assert cycle_problems(tree(tmp_path, files)) == ["import cycle: net.ops, net.ops.a"]


def test_a_cycle_through_packages_that_run_on_the_way_is_found(tmp_path: Path) -> None:
    files = {
        "compiler/passes/__init__.py": "from .fuse import Fuse\n",
        "compiler/passes/fuse.py": "from ..frontends.names import clean\n",
        "compiler/passes/util.py": "",
        "compiler/frontends/__init__.py": "from .onnx import read\n",
        "compiler/frontends/onnx.py": "from ..passes.util import sort\n",
        "compiler/frontends/names.py": "",
    }
    (problem,) = cycle_problems(tree(tmp_path, files))
    assert "net.compiler.frontends.onnx" in problem
    assert "net.compiler.passes.fuse" in problem


def test_what_does_not_run_at_import_makes_no_cycle(tmp_path: Path) -> None:
    files = {
        "ops/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import B\n",
        "ops/b.py": "from .a import A\n",
    }
    assert cycle_problems(tree(tmp_path, files)) == []


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    import json\n",
        "async def f():\n    import json\n",
        "class C:\n    def f(self):\n        if self:\n            import json\n",
        "def f():\n    def g():\n        from json import loads\n",
        "if True:\n    def f():\n        import json.decoder\n",
    ],
)
def test_an_import_inside_a_function_is_found(tmp_path: Path, text: str) -> None:
    (problem,) = lazy_problems(tree(tmp_path, {"ops/a.py": text}), OPTIONAL)
    assert problem.startswith("net.ops.a:")
    assert "imports json" in problem


def test_a_relative_import_inside_a_function_is_found(tmp_path: Path) -> None:
    sources = tree(tmp_path, {"ops/a.py": "def f():\n    from .b import g\n", "ops/b.py": ""})
    assert lazy_problems(sources, OPTIONAL) == ["net.ops.a:2 imports net.ops.b inside a function"]


def test_optional_dependencies_may_be_imported_where_they_are_used(tmp_path: Path) -> None:
    text = "def f():\n    import onnx.helper\n    from numba import cuda\n"
    assert lazy_problems(tree(tmp_path, {"ops/a.py": text}), OPTIONAL) == []


def test_named_modules_may_be_imported_where_they_are_used(tmp_path: Path) -> None:
    text = "def f():\n    from .b import g\n    from .bc import h\n"
    sources = tree(tmp_path, {"ops/a.py": text, "ops/b.py": "", "ops/bc.py": ""})
    assert lazy_problems(sources, ("net.ops.b",)) == [
        "net.ops.a:3 imports net.ops.bc inside a function"
    ]


def test_an_overlong_file_is_found(tmp_path: Path) -> None:
    tree(tmp_path, {"ops/long.py": "x = 1\n" * 601, "ops/fits.py": "x = 1\n" * 600})
    assert length_problems(tmp_path, MAX_LINES) == ["ops/long.py has 601 lines, 600 are allowed"]


def test_other_peoples_files_are_not_looked_at(tmp_path: Path) -> None:
    long = "x = 1\n" * 601
    files = {".venv/lib/a.py": long, "env/b.py": long, "build/lib/c.py": long, "tests/d.py": long}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "env/pyvenv.cfg").touch()
    assert length_problems(tmp_path, MAX_LINES) == ["tests/d.py has 601 lines, 600 are allowed"]
