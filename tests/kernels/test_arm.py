"""What is found of ARM CPUs, and the code they get: compiled here, read, not run."""

from __future__ import annotations

import re
from functools import cache

import pytest
from llvmlite import binding as llvm
from llvmlite import ir
from packing import KERNELS

from qllama.kernels.arm import arm_features
from qllama.kernels.isa import ISAS
from qllama.kernels.linear import generate_linear
from qllama.kernels.simd import I64

LINUX, MACOS = "aarch64-unknown-linux-gnu", "arm64-apple-darwin23.0.0"
# As a wheel for ARM has it: only the machine's own code generator is there at first.
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()


@pytest.mark.parametrize(
    ("triple", "cpu", "flags"),
    [
        (MACOS, "apple-m1", ""),
        (LINUX, "neoverse-n1", ""),
        (LINUX, "neoverse-n1", "-aes,-sve"),
        (LINUX, "generic", "+dotprod"),
        (LINUX, "generic", "+neon,+dotprod"),
    ],
)
def test_arm_features_of_a_cpu_with_byte_products_are_all_that_neon_needs(triple, cpu, flags):
    assert arm_features(triple, cpu, flags) == {"neon", "dotprod"}


@pytest.mark.parametrize(
    ("triple", "cpu", "flags"),
    [
        (LINUX, "cortex-a72", ""),
        (LINUX, "generic", "-aes,-rand,-sha2,-sve"),
        (LINUX, "neoverse-n1", "-dotprod"),
        ("x86_64-unknown-linux-gnu", "haswell", "+avx2"),
    ],
)
def test_arm_features_of_any_other_cpu_are_none(triple, cpu, flags):
    assert arm_features(triple, cpu, flags) == set()


@cache
def assembly(name, isa_name):
    """The kernel of a weight type, compiled for a server CPU with byte products."""
    module = ir.Module("kernel")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 8), "kernel")
    b = ir.IRBuilder(function.append_basic_block())
    generate_linear(b, KERNELS[name], ISAS[isa_name], function.args)
    b.ret_void()
    module.triple = LINUX
    machine = llvm.Target.from_triple(LINUX).create_target_machine(cpu="neoverse-n1", opt=3)
    compiled = llvm.parse_assembly(str(module))
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(compiled, builder)
    return machine.emit_assembly(compiled)


def innermost_loops(text):
    """The instructions of each loop without a loop in it."""
    lines = [line.split("//")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not re.match(r"\.[a-z]", line)]
    places = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    loops = []
    for end, line in enumerate(lines):
        branch = re.match(r"(?:b\.|cbn?z|tbn?z)\S*\s+(?:.*,\s*)?(\.L\w+)$", line)
        if branch and places[branch[1]] < end:
            body = lines[places[branch[1]] + 1 : end + 1]
            if not any(inner.endswith(":") for inner in body):
                loops.append(body)
    return loops


def count(loop, instruction):
    return sum(line.split()[0] == instruction for line in loop)


INTEGER = [name for name, kernel in KERNELS.items() if kernel.activation == "q8"]


@pytest.mark.parametrize("name", INTEGER)
def test_neon_kernel_multiplies_bytes_by_sdot_in_its_innermost_loops(name):
    n_sdot = [count(loop, "sdot") for loop in innermost_loops(assembly(name, "neon"))]
    isa = ISAS["neon"]
    # A block of 32 takes 8 steps for each of a tile's sums.
    expected = {8 * width * isa.row_registers(width) for width in isa.widths}
    assert set(n_sdot) - {0} == expected


@pytest.mark.parametrize("name", INTEGER)
def test_portable_kernel_on_the_same_cpu_has_no_sdot(name):
    assert "sdot" not in assembly(name, "portable")


@pytest.mark.parametrize("name", KERNELS)
def test_neon_kernel_keeps_its_hot_loops_in_vector_registers(name):
    hot = [loop for loop in innermost_loops(assembly(name, "neon")) if count(loop, "fmla") > 0]
    assert len(hot) >= len(ISAS["neon"].widths)
    for loop in hot:
        # Two tokens of q4 use every register, and so do up to four of q5 and q6; nothing else
        # reads or writes the stack.
        assert sum("[sp" in line for line in loop) <= {"q4": 2, "q5": 14, "q6": 13}.get(name, 0)
        # No lane is moved by itself, no number converted alone.
        assert not any(
            re.match(r"(umov|smov|ins|fcvt|[us]cvtf)\s+[wxshd]\d", line) for line in loop
        )


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "f16"])
def test_neon_kernel_converts_half_precision_by_instruction(name):
    assert any(count(loop, "fcvtl") for loop in innermost_loops(assembly(name, "neon")))
