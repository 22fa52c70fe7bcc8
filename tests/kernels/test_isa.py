"""The choice of instruction set, and all kernels on those this CPU would not choose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite import binding as llvm
from llvmlite.binding import FeatureMap
from packing import NEEDS, host_features

from qllama.errors import KernelError
from qllama.kernels import isa
from qllama.kernels.isa import ISAS, current_isa

AVX2 = {"avx2", "fma", "f16c"}
AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512vnni"}
AMX = {"amx-tile", "amx-int8"}


def choose(monkeypatch, features=None, forced=None):
    if features is not None:
        monkeypatch.setattr(isa, "_llvm_features", lambda: set(features))
    if forced is None:
        monkeypatch.delenv("QLLAMA_ISA", raising=False)
    else:
        monkeypatch.setenv("QLLAMA_ISA", forced)
    return current_isa.__wrapped__().name


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (AVX512 | AVX2, "avx512vnni"),
        (AVX512 | AVX2 | {"avx512bf16"}, "avx512vnni"),
        (AMX | AVX512 | AVX2, "amx"),
        *[((AMX | AVX512 | AVX2) - {missing}, "avx512vnni") for missing in sorted(AMX)],
        (AMX | AVX2, "avx2"),
        *[((AVX512 | AVX2) - {missing}, "avx2") for missing in sorted(AVX512)],
        (AVX2, "avx2"),
        *[(AVX2 - {missing}, "portable") for missing in sorted(AVX2)],
        ({"sse2", "avx"}, "portable"),
        (AVX2 | {"avxvnni"}, "avxvnni"),
        (AVX512 | AVX2 | {"avxvnni"}, "avx512vnni"),
        *[((AVX2 | {"avxvnni"}) - {missing}, "portable") for missing in sorted(AVX2)],
        ({"neon", "dotprod", "fp-armv8"}, "neon"),
        ({"neon", "fp-armv8"}, "portable"),
        (set(), "portable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(sorted(value)) or "none",
)
def test_isa_is_chosen_by_all_features_it_needs(monkeypatch, features, expected):
    assert choose(monkeypatch, features) == expected


@pytest.mark.parametrize("forced", ISAS)
def test_isa_forced_by_the_environment_wins(monkeypatch, forced):
    everything = AMX | AVX512 | AVX2 | {"avxvnni", "neon", "dotprod"}
    assert choose(monkeypatch, everything, forced) == forced


def test_isa_empty_variable_forces_nothing(monkeypatch):
    assert choose(monkeypatch, AVX2, "") == "avx2"


def test_isa_that_the_cpu_lacks_is_refused_with_those_it_has(monkeypatch):
    message = "QLLAMA_ISA: this CPU has no avx512vnni; it can run avx2, portable"
    with pytest.raises(KernelError, match=message):
        choose(monkeypatch, AVX2, "avx512vnni")


def test_isa_unknown_name_is_refused_with_the_known_ones(monkeypatch):
    known = ", ".join(ISAS)
    with pytest.raises(KernelError, match=f"QLLAMA_ISA: expected one of {known}, found 'sse9'"):
        choose(monkeypatch, AVX2, "sse9")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", "portable"),
        ("+avx2,+fma,+f16c", "avx2"),
        ("+avx2,+fma,-f16c", "portable"),
        (",".join(f"+{name}" for name in AVX512 | AVX2), "avx512vnni"),
    ],
)
def test_isa_follows_the_features_given_to_numba(monkeypatch, flags, expected):
    monkeypatch.setattr(isa.numba_config, "CPU_FEATURES", flags)
    assert choose(monkeypatch) == expected


@pytest.mark.parametrize(("granted", "expected"), [(True, "amx"), (False, "avx512vnni")])
def test_isa_takes_amx_only_where_the_system_grants_it(monkeypatch, granted, expected):
    monkeypatch.setattr(isa, "may_use_amx", lambda: granted)
    flags = ",".join(f"+{name}" for name in AMX | AVX512 | AVX2)
    monkeypatch.setattr(isa.numba_config, "CPU_FEATURES", flags)
    assert choose(monkeypatch) == expected


def test_isa_without_numba_settings_asks_llvm(monkeypatch):
    monkeypatch.setattr(isa.numba_config, "CPU_FEATURES", None)
    answer = FeatureMap({"avx2": True, "fma": True, "f16c": True, "avx512f": False})
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: answer)
    assert choose(monkeypatch) == "avx2"
    answer["fma"] = False
    assert choose(monkeypatch) == "portable"


def test_isa_without_avx_by_numbas_setting_is_portable(monkeypatch):
    # Code for AVX that numba then may not generate ends the process.
    monkeypatch.setattr(isa.numba_config, "CPU_FEATURES", None)
    monkeypatch.setattr(isa.numba_config, "ENABLE_AVX", False)
    assert choose(monkeypatch) == "portable"


@pytest.mark.parametrize("name", ISAS)
def test_isa_widths_descend_to_one_and_fit_the_tile(name):
    chosen = ISAS[name]
    assert chosen.name == name
    assert chosen.widths == tuple(sorted(set(chosen.widths), reverse=True))
    assert chosen.widths[-1] == 1
    assert 16 % chosen.lanes == 0


# generic is x86-64 without any extension: code that needs one, or a library function for
# what the CPU lacks (half precision, say), fails to compile, to link or to run.
CPUS = {
    "avx512vnni": {},
    "avxvnni": {"NUMBA_CPU_NAME": "alderlake", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+avxvnni"},
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"},
    "portable": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
}


@pytest.mark.parametrize("name", CPUS)
def test_isa_kernels_and_forward_pass_are_right_on_another(name):
    if NEEDS[name] is not None and NEEDS[name] not in host_features():
        pytest.skip(f"this CPU has no {name}")
    here = Path(__file__)
    # Left out: this file, which would start itself again, the tests that forced
    # instruction sets cannot change, and the quantizers, whose tests do this themselves.
    left_out = (here.name, "test_cores.py", "test_kernel_cache.py", "test_quantize.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        + [here.parent, here.parents[1] / "model" / "test_forward.py"]
        + [f"--ignore={here.parent / file}" for file in left_out],
        env=os.environ | CPUS[name] | {"QLLAMA_ISA": name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_isa_attention_needs_no_scratch_of_matrix_instructions():
    """Attention gives the kernel of q8 keys none; groups of vectors take it from nowhere."""
    for each in ISAS.values():
        assert not each.matrix_width or each.vector_widths[0] < each.matrix_width, each.name
