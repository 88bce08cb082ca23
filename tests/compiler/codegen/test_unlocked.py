"""LLVM compiles in several threads at once, and says of bad texts what llvmlite would."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import llvmlite.binding as llvm
import pytest
from llvmlite.binding import ffi

from tilewright.compiler.codegen.cpu import unlocked
from tilewright.compiler.codegen.cpu.assemble import build_object
from tilewright.compiler.codegen.cpu.target import host

ADDS = "define i64 @adds(i64 %x) nounwind {{\n  %y = add i64 %x, {}\n  ret i64 %y\n}}"


def test_whoever_is_in_llvmlite_keeps_nobody_out() -> None:
    made, entered, leave = threading.Event(), threading.Event(), threading.Event()

    def waits() -> None:
        with ffi.lib._lock:
            entered.set()
            leave.wait(60)

    def calls() -> None:
        machine, context = host().machine(), llvm.create_context()
        module = unlocked.parse(ADDS.format(1), context)
        library = unlocked._library()
        library.LLVMPY_DisposeMemoryBuffer.argtypes = [ffi.LLVMMemoryBufferRef]
        holder = threading.Thread(target=waits)
        holder.start()
        entered.wait(60)
        parsed = unlocked.parse(ADDS.format(2), context)
        buffer = library.LLVMPY_TargetMachineEmitToMemory(machine, module, 1, None)
        made.set()
        leave.set()
        holder.join()
        library.LLVMPY_DisposeMemoryBuffer(buffer)
        for owned in (module, parsed, context):
            owned.close()

    caller = threading.Thread(target=calls, daemon=True)
    caller.start()
    came = made.wait(20)
    leave.set()
    caller.join()
    assert came


def test_many_at_once_make_what_one_makes() -> None:
    texts = [ADDS.format(k) for k in range(40)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: build_object(text, host()), texts))
    assert together == [build_object(text, host()) for text in texts]
    assert len(set(together)) == len(texts)


def test_no_two_threads_share_a_code_generator() -> None:
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(host().machine).result()
    assert other is not host().machine() is host().machine()


def test_bad_text_is_refused_in_llvms_words() -> None:
    text = "define i64 @f() {\n  rt i64 1\n}"
    with llvm.create_context() as context:
        with pytest.raises(RuntimeError, match="expected instruction opcode") as ours:
            unlocked.parse(text, context)
        with pytest.raises(RuntimeError) as theirs:
            llvm.parse_assembly(text, context)
    assert str(ours.value) in str(theirs.value)
