"""Objects become callable addresses; what is missing or damaged is an error, not a crash."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tilewright.compiler.codegen.cpu.assemble import build_object
from tilewright.compiler.codegen.cpu.link import link
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.errors import LoweringError


def returning(value: int, name: str = "answer") -> bytes:
    return build_object(f"define i64 @{name}() nounwind {{\n  ret i64 {value}\n}}", host())


def call(address: int) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int64)(address)())


def test_equal_names_in_two_links_do_not_meet() -> None:
    first, second = link([returning(1)], ["answer"]), link([returning(2)], ["answer"])
    assert (call(first.address("answer")), call(second.address("answer"))) == (1, 2)
    del first
    gc.collect()
    assert call(second.address("answer")) == 2


def test_objects_call_each_other_and_given_addresses() -> None:
    driver = build_object(
        """
        declare i64 @left()
        declare i64 @right()
        declare i64 @outside(i64)
        define i64 @total() nounwind {
          %a = call i64 @left()
          %b = call i64 @right()
          %c = add i64 %a, %b
          %d = call i64 @outside(i64 %c)
          ret i64 %d
        }
        """,
        host(),
    )
    outside = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(lambda value: value * 10)
    address = ctypes.cast(outside, ctypes.c_void_p).value
    assert address is not None
    objects = [returning(3, "left"), returning(4, "right"), driver]
    linked = link(objects, ["total", "left"], {"outside": address})
    assert call(linked.address("total")) == 70
    assert call(linked.address("left")) == 3
    with pytest.raises(LoweringError, match=r"no symbol 'right'.*left, total"):
        linked.address("right")


UNARY = ("expf", "tanhf", "asinhf", "acoshf", "atanhf", "erff", "lgammaf", "cbrtf", "log1pf")
UNARY += ("expm1f", "sinf", "cosf", "tanf", "sinhf", "coshf", "roundf", "logf", "exp2f")


def test_libm_is_found_and_computes() -> None:
    text = "\n".join(
        f"""
        declare float @{name}(float)
        define void @use_{name}(ptr %x) nounwind {{
          %v = load float, ptr %x
          %r = call float @{name}(float %v)
          store float %r, ptr %x
          ret void
        }}"""
        for name in UNARY
    )
    linked = link([build_object(text, host())], [f"use_{name}" for name in UNARY])
    for name in UNARY:
        x = 1.25 if name == "acoshf" else 0.625
        value = ctypes.c_float(x)
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(linked.address(f"use_{name}"))
        function(ctypes.addressof(value))
        reference = {"roundf": lambda v: 1.0}.get(name) or getattr(math, name[:-1])
        assert value.value == pytest.approx(reference(x), rel=1e-6), name


LIBM_WITHOUT_PYTHONS_HELP = """
    import ctypes, sys
    real = ctypes.CDLL
    opened = []
    def spy(name, *args, **kwargs):
        opened.append((name, kwargs.get("mode")))
        return real(name, *args, **kwargs)
    ctypes.CDLL = spy
    from tilewright.compiler.codegen.cpu.link import link
    link([], [])
    assert ("libm.so.6", ctypes.RTLD_GLOBAL) in opened, opened
    assert "numba" not in sys.modules
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="loads libm by its Linux name")
def test_libm_is_opened_even_if_python_is_not_linked_with_it() -> None:
    code = textwrap.dedent(LIBM_WITHOUT_PYTHONS_HELP)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment())


def environment() -> dict[str, str]:
    """A child's environment, in which it finds the package where this process has found it."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_memset_and_memcpy_are_found() -> None:
    text = """
    declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
    declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
    define void @fill(ptr %to, ptr %from, i64 %bytes) nounwind {
      call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %from, i64 %bytes, i1 false)
      call void @llvm.memset.p0.i64(ptr %from, i8 255, i64 %bytes, i1 false)
      ret void
    }
    """
    linked = link([build_object(text, host())], ["fill"])
    to, source = np.zeros(1000, np.uint8), np.arange(1000, dtype=np.uint8)
    fill = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    fill(linked.address("fill"))(to.ctypes.data, source.ctypes.data, 900)
    assert np.array_equal(to[:900], np.arange(900, dtype=np.uint8)) and not to[900:].any()
    assert (source[:900] == 255).all() and (source[900:] != 255).any()


def test_code_outlives_everything_but_its_link() -> None:
    linked = link([returning(5)], ["answer"])
    gc.collect()
    others = [link([returning(n)], ["answer"]) for n in range(20)]
    assert [call(other.address("answer")) for other in others] == list(range(20))
    del others
    gc.collect()
    assert call(linked.address("answer")) == 5


@pytest.mark.parametrize("kind", ["missing", "absent", "garbage", "truncated", "twice"])
def test_bad_input_is_an_error(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    good = returning(6)
    calls_nothing = "declare i64 @nowhere()\ndefine i64 @answer() {\n %v = call i64 @nowhere()\n"
    objects = {
        "missing": [build_object(calls_nothing + " ret i64 %v\n}", host())],
        "absent": [returning(6, "other")],
        "garbage": [b"not an object" * 20],
        "truncated": [good[: len(good) // 2]],
        "twice": [good, good],
    }[kind]
    with pytest.raises(LoweringError, match=f"linking {len(objects)} objects failed"):
        link(objects, ["answer"])
    if kind == "missing":
        assert "nowhere" in capfd.readouterr().err
    assert call(link([good], ["answer"]).address("answer")) == 6


def test_a_table_of_constants_far_from_its_code_is_reached() -> None:
    values = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)
    words = ", ".join(f"i32 {word}" for word in values.view(np.int32))
    text = f"""
    @table = internal constant [{values.size} x i32] [{words}]
    define i32 @pick(i64 %i) nounwind {{
      %p = getelementptr i32, ptr @table, i64 %i
      %v = load i32, ptr %p
      ret i32 %v
    }}
    """
    linked = link([build_object(text, host())], ["pick"])
    pick = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64)(linked.address("pick"))
    for i in (0, 1, 40_000, values.size - 1):
        assert pick(i) == values.view(np.int32)[i]
