"""The GPUs that code is made for: their memory hierarchy and their peaks, as the vendor's documents give them.

Sources: NVIDIA A100 Tensor Core GPU Architecture (2020), Ampere GA102 (2021), Ada (2023) and H100 (2022) white papers;
CUDA C++ Programming Guide, table of technical specifications by compute capability. Peaks are of dense products.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["GPUS", "Gpu"]


@dataclass(frozen=True)
class Gpu:
    """One architecture, by a device that has it.

    Attributes:
        name: as in a target, `cuda:sm_80`.
        kind: "cuda" or "opencl".
        device: the device that the figures are of.
        lanes: threads that run in step (a warp).
        threads: most in a block.
        shared_bytes: most that a block may have.
        multiprocessors: of the device.
        threads_each: most that a multiprocessor holds.
        blocks_each: most that a multiprocessor holds.
        shared_bytes_each: of a multiprocessor.
        registers_each: 32-bit registers of a multiprocessor.
        registers: most of a thread.
        l2_bytes: of the device.
        memory_bytes_a_second: of the device's memory.
        flops: peak operations a second by type: "float32" of plain cores, the others of tensor cores.
        launch_seconds: what starting a kernel takes.
        tensor_cores: whether products of float16, bfloat16 and int8 run on them (`mma.sync`).
        async_copies: whether copies from global to shared memory go past the registers (`cp.async`).
    """

    name: str
    kind: str
    device: str
    lanes: int = 32
    threads: int = 1024
    shared_bytes: int = 48 << 10
    multiprocessors: int = 1
    threads_each: int = 1024
    blocks_each: int = 16
    shared_bytes_each: int = 48 << 10
    registers_each: int = 65536
    registers: int = 255
    l2_bytes: int = 1 << 20
    memory_bytes_a_second: float = 1e11
    flops: dict[str, float] = field(default_factory=dict, hash=False)
    launch_seconds: float = 3e-6
    tensor_cores: bool = False
    async_copies: bool = False


def _nvidia(
    name: str, device: str, sizes: tuple[int, int, int, int, int], rates: tuple[float, float, float, float]
) -> Gpu:
    """Sizes: multiprocessors, threads and blocks of each, KiB of shared memory of each, MiB of L2.

    Rates: GB/s of memory, and TFLOP/s of float32, of float16 summed in float32, and of int8.
    """
    multiprocessors, threads, blocks, shared, l2 = sizes
    memory, single, half, bytes_ = rates
    return Gpu(
        name,
        "cuda",
        device,
        shared_bytes=(shared - 1) << 10,  # one KiB of each block is the driver's
        multiprocessors=multiprocessors,
        threads_each=threads,
        blocks_each=blocks,
        shared_bytes_each=shared << 10,
        l2_bytes=l2 << 20,
        memory_bytes_a_second=memory * 1e9,
        flops={"float32": single * 1e12, "float16": half * 1e12, "bfloat16": half * 1e12, "int8": bytes_ * 1e12},
        tensor_cores=True,
        async_copies=True,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _nvidia("sm_80", "A100 SXM 40 GB", (108, 2048, 32, 164, 40), (1555, 19.5, 312, 624)),
        _nvidia("sm_86", "GeForce RTX 3090", (82, 1536, 16, 100, 6), (936, 35.6, 71, 284)),
        _nvidia("sm_89", "GeForce RTX 4090", (128, 1536, 24, 100, 72), (1008, 82.6, 165.2, 660.6)),
        _nvidia("sm_90", "H100 SXM", (132, 2048, 32, 228, 50), (3352, 66.9, 989.4, 1978.9)),
        Gpu(
            "opencl",
            "opencl",
            "any OpenCL device",
            threads=256,
            shared_bytes=32 << 10,  # the least that OpenCL 1.2 promises of a full profile
            shared_bytes_each=32 << 10,
            flops={"float32": 1e12},
            launch_seconds=1e-5,
        ),
    )
}
