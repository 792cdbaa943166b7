"""The processor at hand is matched with the table of processors, without measuring anything."""

from __future__ import annotations

import dataclasses

import pytest

from optimizer import target
from optimizer.cpus import CPUS
from optimizer.errors import TargetError
from optimizer.target import Target, detect_cpu

AVX512 = "fma avx2 avx512f avx512bw avx512vl avx512dq"


@pytest.mark.parametrize(
    ("facts", "machine", "name"),
    [
        ({"vendor_id": "AuthenticAMD", "flags": f"{AVX512} avx512_vp2intersect"}, "x86_64", "znver5"),
        ({"vendor_id": "AuthenticAMD", "flags": AVX512}, "x86_64", "znver4"),
        ({"vendor_id": "AuthenticAMD", "flags": "avx2 fma"}, "x86_64", "znver3"),
        ({"vendor_id": "GenuineIntel", "flags": f"{AVX512} clwb avx512_vbmi2 amx_tile"}, "x86_64", "sapphirerapids"),
        ({"vendor_id": "GenuineIntel", "flags": f"{AVX512} clwb avx512_vbmi2"}, "x86_64", "icelake-server"),
        ({"vendor_id": "GenuineIntel", "flags": f"{AVX512} clwb"}, "x86_64", "skylake-avx512"),
        ({"vendor_id": "GenuineIntel", "flags": AVX512}, "x86_64", "x86-64-v4"),
        ({"vendor_id": "GenuineIntel", "flags": "avx2 fma"}, "x86_64", "x86-64-v3"),
        ({"vendor_id": "GenuineIntel", "flags": "avx2"}, "x86_64", "generic"),
        ({}, "x86_64", "generic"),
        ({"CPU implementer": "0x41", "CPU part": "0xd0c"}, "aarch64", "neoverse-n1"),
        ({"CPU implementer": "0x41", "CPU part": "0xd40"}, "aarch64", "neoverse-v1"),
        ({"CPU implementer": "0x41", "CPU part": "0xd4f"}, "aarch64", "neoverse-v2"),
        ({"CPU implementer": "0x41", "CPU part": "0xd0b"}, "aarch64", "cortex-a76"),
        ({"CPU implementer": "0x41", "CPU part": "0xfff"}, "aarch64", "neoverse-n1"),
        ({"CPU implementer": "0x61", "CPU part": "0x022"}, "aarch64", "apple-m1"),
        ({}, "arm64", "apple-m1"),
    ],
)
def test_the_nearest_entry(facts: dict[str, str], machine: str, name: str) -> None:
    assert target._nearest_entry(facts, machine).name == name


def test_detecting_twice_gives_the_same() -> None:
    assert detect_cpu() == detect_cpu()
    assert detect_cpu().name == "native"


@pytest.mark.parametrize("name", sorted(CPUS))
def test_every_entry_is_a_target_and_makes_sense(name: str) -> None:
    cpu = Target.parse(f"cpu:{name}").cpu
    assert cpu is not None
    assert dataclasses.replace(cpu, cores=1) == CPUS[name]
    assert cpu.l1_bytes < cpu.l2_bytes < cpu.l3_bytes
    assert cpu.l2_bytes_a_cycle > cpu.l3_bytes_a_cycle > cpu.memory_bytes_a_cycle > 0
    assert cpu.flops_a_cycle == 2 * cpu.fma_pipes * cpu.vector_bytes // 4


def test_a_name_that_is_nearly_right() -> None:
    with pytest.raises(TargetError, match=r"unknown processor in target 'cpu:neoverse-n' \(did you mean 'neoverse-n1'"):
        Target.parse("cpu:neoverse-n")
