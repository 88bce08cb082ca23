"""What the threads of a warp do together stays one instruction, whatever branches are around it:
copied into both arms of one, only those threads would do it that are there."""

from __future__ import annotations

import llvmlite.binding as llvm
import pytest

from tilewright.compiler.codegen.cuda.library import definition
from tilewright.compiler.codegen.cuda.ptx import TRIPLE, _machine

AROUND = """
define ptx_kernel void @kernel(ptr %a, ptr %b, ptr %c, ptr %y, i32 %n) {
  %shared = addrspacecast ptr addrspace(3) @words to ptr
  %id = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %wide = zext i32 %id to i64
  %inside = icmp slt i32 %id, %n
  br i1 %inside, label %first, label %meet
first:
  store i32 1, ptr %y
  br label %meet
meet:
  %w = phi i32 [ 0, %0 ], [ 7, %first ]
  CALL
  br i1 %inside, label %last, label %end
last:
  %to = getelementptr i32, ptr %y, i32 %id
  store i32 %w, ptr %to
  br label %end
end:
  ret void
}
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
@words = internal addrspace(3) global [64 x i8] undef, align 128
"""


@pytest.mark.parametrize(("name", "call", "instruction"), [
    ("mma_bf16.f32.u32.u32.1.1", 'call void @"{}"(ptr %c, ptr %a, ptr %b)', "mma.sync"),
    ("mma_f16.f32.u32.u32.1.1", 'call void @"{}"(ptr %c, ptr %a, ptr %b)', "mma.sync"),
    ("mma_i8.i32.u32.u32.1.1", 'call void @"{}"(ptr %c, ptr %a, ptr %b)', "mma.sync"),
    ("mma_tf32_at.f32.u32.8.u32.1.1",
     'call void @"{}"(ptr %c, ptr %a, i64 0, ptr %b)', "mma.sync"),
    ("ldmatrix.u32.0.u16.1.0", 'call void @"{}"(ptr %c, ptr %shared, i64 0)', "ldmatrix"),
    ("barrier", 'call void @"{}"()', "bar"),
    ("barrier_of.64", 'call void @"{}"(i64 1)', "bar.sync"),
    ("turn_columns.f32", 'call void @"{}"(ptr %c, i64 0)', "shfl.sync"),
    ("uniform.i64", '%r = call i64 @"{}"(i64 %wide)\n  store i64 %r, ptr %c', "shfl.sync"),
    ("shuffle_xor.i32", '%r = call i32 @"{}"(i32 %id, i64 1)\n  store i32 %r, ptr %c', "shfl.sync"),
])  # fmt: skip
def test_branches_do_not_divide_a_warp(name: str, call: str, instruction: str) -> None:
    text, declared = definition(f"tw.{name}")
    needed = text.count(f"@llvm.nvvm.{instruction}") or 1
    whole = AROUND.replace("CALL", call.format(f"tw.{name}"))
    known = [d for d in declared if "tid.x" not in d]
    ptx = _compiled("\n".join([text, *known, whole]))
    found = [x for x in ptx.splitlines() if x.strip().startswith(instruction)]
    assert len(found) == needed, ptx


def _compiled(text: str) -> str:
    machine = _machine("sm_80")
    with llvm.parse_assembly(text) as module:
        module.triple, module.data_layout = TRIPLE, str(machine.target_data)
        for f in module.functions:
            if f.name.startswith("tw."):
                f.linkage = "internal"
        tuning = llvm.create_pipeline_tuning_options(speed_level=3)
        llvm.create_pass_builder(machine, tuning).getModulePassManager().run(
            module, llvm.create_pass_builder(machine, tuning)
        )
        made: str = machine.emit_assembly(module)
        return made
