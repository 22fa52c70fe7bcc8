"""What an ARM CPU can do, as far as the compiler knows.

LLVM lists the features of an x86 CPU. On ARM the list is short or empty, and the rest
follows from the CPU's name inside LLVM: so it is asked by giving it something to compile.
"""

from __future__ import annotations

from llvmlite import binding as llvm

__all__ = ["arm_features"]

# Four byte products a lane, which LLVM turns into `sdot` exactly where it is allowed to.
_BYTE_PRODUCTS = """
define i32 @products(<16 x i8> %x, <16 x i8> %y) {
  %wide_x = sext <16 x i8> %x to <16 x i32>
  %wide_y = sext <16 x i8> %y to <16 x i32>
  %products = mul <16 x i32> %wide_x, %wide_y
  %sum = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %products)
  ret i32 %sum
}
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)
"""


def arm_features(triple: str, cpu: str, flags: str) -> set[str]:
    """The features that our kernels can use, by LLVM's names; none of another CPU.

    Parameters
    ----------
    triple : str
        The platform, as LLVM writes it.
    cpu : str
        LLVM's name of the CPU that code is generated for.
    flags : str
        The features that are switched on or off beside those of the CPU: `+dotprod,-sve`.

    Returns
    -------
    set of str
        `neon` and `dotprod`, or nothing.
    """
    if not triple.startswith(("aarch64", "arm64")):
        return set()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=flags)
    assembly = machine.emit_assembly(llvm.parse_assembly(_BYTE_PRODUCTS))
    return {"neon", "dotprod"} if "sdot" in assembly else set()
