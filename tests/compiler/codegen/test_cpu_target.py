"""Targets read their vector unit off the features, and LLVM text becomes code for each of them."""

from __future__ import annotations

import re

import pytest

from tilewright.compiler.codegen.cpu.assemble import assembly, build_object
from tilewright.compiler.codegen.cpu.target import NAMED, CpuTarget, host, named
from tilewright.compiler.errors import LoweringError, TargetError

X86 = "x86_64-unknown-linux-gnu"
ARM = "aarch64-unknown-linux-gnu"


def axpy(lanes: int) -> str:
    """y += 1.5 * x over one vector, with an accumulator in memory for SROA to remove."""
    v = f"<{lanes} x float>"
    return f"""
    declare {v} @llvm.fma.v{lanes}f32({v}, {v}, {v})
    define void @axpy(ptr %x, ptr %y) nounwind {{
      %acc = alloca {v}, align 64
      %a = load {v}, ptr %x, align 64
      %b = load {v}, ptr %y, align 64
      store {v} %b, ptr %acc
      %c = load {v}, ptr %acc
      %d = call {v} @llvm.fma.v{lanes}f32({v} %a, {v} splat (float 1.5), {v} %c)
      store {v} %d, ptr %y, align 64
      ret void
    }}
    """


@pytest.mark.parametrize(
    ("triple", "features", "bits", "registers"),
    [
        (X86, "+sse2,+avx,+avx2,+fma,+avx512f", 512, 32),
        (X86, "+sse2,+avx,+avx2,-avx512f", 256, 16),
        (X86, "+sse2,+avx,-avx2", 256, 16),
        (X86, "+sse2,-avx,-avx512f", 128, 16),
        (X86, "", 128, 16),
        (ARM, "+neon", 128, 32),
        ("arm64-apple-darwin23", "", 128, 32),
        (ARM, "+neon,+sve,+sve2", 128, 32),
    ],
)
def test_vector_unit_follows_from_features(
    triple: str, features: str, bits: int, registers: int
) -> None:
    # The CPU's name promises AVX-512; only the features count.
    target = CpuTarget.of(triple, "skylake-avx512", features)
    assert (target.vector_bits, target.vector_registers) == (bits, registers)
    assert [target.lanes(size) for size in (1, 2, 4, 8)] == [bits // w for w in (8, 16, 32, 64)]


@pytest.mark.parametrize(
    ("name", "lanes", "register", "fused"),
    [
        ("x86-64-avx512", 16, r"%zmm\d", r"vfmadd\w+ps"),
        ("x86-64-avx2", 8, r"%ymm\d", r"vfmadd\w+ps"),
        ("x86-64-sse", 4, r"%xmm\d", None),
        ("aarch64-neon", 4, r"\bv\d+\.4s", r"fmla|fmadd"),
    ],
)
def test_each_named_target_compiles_to_its_vectors(
    name: str, lanes: int, register: str, fused: str | None
) -> None:
    target = named(name)
    assert target.lanes(4) == lanes
    listing = assembly(axpy(lanes), target)
    assert re.search(register, listing), listing
    assert fused is None or re.search(fused, listing), listing
    image = build_object(axpy(lanes), target)
    machine = int.from_bytes(image[18:20], "little")  # e_machine of the ELF header
    assert machine == {"x86_64": 62, "aarch64": 183}[target.architecture]


def test_sroa_removes_the_accumulators_stack_slot() -> None:
    target = named("x86-64-avx512")
    assert "(%rsp)" in assembly(axpy(16), target, pipeline="none")
    assert "(%rsp)" not in assembly(axpy(16), target)


def test_the_o2_pipeline_vectorises_and_the_default_does_not() -> None:
    loop = """
    define void @scale(ptr noalias %x, i64 %n) nounwind {
    entry:
      br label %next
    next:
      %i = phi i64 [ 0, %entry ], [ %j, %next ]
      %p = getelementptr float, ptr %x, i64 %i
      %v = load float, ptr %p
      %w = fmul float %v, 3.0
      store float %w, ptr %p
      %j = add nuw nsw i64 %i, 1
      %again = icmp ult i64 %j, %n
      br i1 %again, label %next, label %done
    done:
      ret void
    }
    """
    target = named("x86-64-avx2")
    assert "vmulps" in assembly(loop, target, pipeline="o2")
    assert "vmulps" not in assembly(loop, target)
    with pytest.raises(ValueError, match="unknown pipeline 'o9'"):
        build_object(loop, target, pipeline="o9")


def test_fingerprints_tell_targets_and_versions_apart() -> None:
    prints = {name: target.fingerprint for name, target in NAMED.items()}
    assert len({tuple(p.items()) for p in prints.values()}) == len(NAMED)
    for fields in prints.values():
        assert {"triple", "cpu", "features", "llvm", "llvmlite"} <= set(fields)


def test_unknown_names_and_architectures_are_target_errors() -> None:
    with pytest.raises(TargetError, match=r"unknown CPU 'z80'.*x86-64-avx2"):
        named("z80")
    with pytest.raises(TargetError, match="no code generator for nonsense"):
        CpuTarget.of("nonsense-unknown-linux", "generic", "").machine()


def test_host_can_be_told_to_use_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TILEWRIGHT_CPU", raising=False)
    full = host()
    assert full.runs_here and host() is full
    for name, target in NAMED.items():
        monkeypatch.setenv("TILEWRIGHT_CPU", name)
        if target.runs_here:
            chosen = host()
            assert chosen.vector_bits == target.vector_bits
            assert chosen.features == target.features
            assert chosen.triple == full.triple
        else:
            with pytest.raises(TargetError, match=f"TILEWRIGHT_CPU={name}"):
                host()
    monkeypatch.setenv("TILEWRIGHT_CPU", "abacus")
    with pytest.raises(TargetError, match="abacus"):
        host()
    assert sum(target.runs_here for target in NAMED.values()) < len(NAMED)


def test_a_cpu_that_halves_its_vectors_says_so() -> None:
    wide = NAMED["x86-64-avx512"]
    narrow = NAMED["x86-64-avx2"]
    assert CpuTarget.of(wide.triple, "znver4", wide.features).halves_vectors
    assert not CpuTarget.of(wide.triple, "znver4", narrow.features).halves_vectors
    assert not any(target.halves_vectors for target in NAMED.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("define void @broken(ptr %p) {\n  ret i32 %q\n}", "%q"),
        ("define float @broken() {\n  ret void\n}", "ret void"),
        # Well formed, but the verifier must object: a definition that does not dominate its use.
        (
            "define i32 @broken(i1 %c) {\n  br i1 %c, label %a, label %b\na:\n  %v = add i32 1, 1\n"
            "  br label %b\nb:\n  ret i32 %v\n}",
            "does not dominate",
        ),
    ],
)
def test_rejected_text_names_the_kernel_and_says_why(text: str, said: str) -> None:
    with pytest.raises(LoweringError) as caught:
        build_object(text, host())
    message = str(caught.value)
    assert "'broken'" in message and said in message
    assert "\n" not in message
