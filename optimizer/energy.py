"""An estimate of the energy of one run, from its operations and the bytes that they move.

The energy of each operation and each access is that of M. Horowitz, "Computing's energy problem (and what we can do
about it)", ISSCC 2014, figure 1.1.9: 45 nm, 0.9 V. A multiply-add counts as two operations, so an operation costs the
mean of an addition and a multiplication.

    type            addition   multiplication
    int8             0.03 pJ     0.2 pJ
    int32            0.1  pJ     3.1 pJ
    float16          0.4  pJ     1.1 pJ
    float32          0.9  pJ     3.7 pJ

    access of 64 bits: cache of 1 MB 100 pJ, DRAM 1.3 to 2.6 nJ

The absolute figures are those of one process of 2014 and of nothing but arithmetic and data; they are for comparing a
graph with what became of it, and arithmetic with data movement.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.usage import Usage

__all__ = ["ASSUMPTIONS", "MODEL", "Energy", "estimate_energy"]

MODEL = "M. Horowitz, Computing's energy problem, ISSCC 2014 (45 nm, 0.9 V)"

ASSUMPTIONS = (
    "an operation costs the mean of an addition and a multiplication of its type (float32: 2.3 pJ); bfloat16 counts as "
    "float16, int16 as int32, float64 and int64 as twice their halves, other types as float32",
    "every weight is read once a run: from DRAM if all of them together do not fit the last cache, else from cache",
    "every activation is written once and read once by each node that uses it: in cache if all that are alive at the "
    "peak fit there, else in DRAM",
    "an access costs 12.5 pJ a byte in cache (1 MB: 100 pJ for 64 bits) and 244 pJ a byte in DRAM (1.95 nJ, the middle "
    "of 1.3 to 2.6 nJ)",
    "not counted: instructions, registers and inner caches, idle time, leakage",
)

_PICO = 1e-12

_OPERATION = {
    "bfloat16": 0.75 * _PICO,
    "float16": 0.75 * _PICO,
    "float32": 2.3 * _PICO,
    "float64": 4.6 * _PICO,
    "int16": 1.6 * _PICO,
    "int32": 1.6 * _PICO,
    "int64": 3.2 * _PICO,
    "int8": 0.115 * _PICO,
    "uint8": 0.115 * _PICO,
}
"""Joules an operation; what is not here costs as much as `float32`."""

_CACHE_BYTE = 100 / 8 * _PICO
_DRAM_BYTE = 1950 / 8 * _PICO


@dataclass(frozen=True)
class Energy:
    """The estimate for one run, in joules.

    Attributes:
        arithmetic: Of the operations.
        weights: Of reading the weights.
        activations: Of reading and writing what nodes hand on.
    """

    arithmetic: float
    weights: float
    activations: float

    @property
    def total(self) -> float:
        """Of all three."""
        return self.arithmetic + self.weights + self.activations

    def to_dict(self) -> dict[str, float]:
        """JSON types."""
        parts = {"arithmetic": self.arithmetic, "weights": self.weights, "activations": self.activations}
        return {**parts, "total": self.total}


def estimate_energy(usage: Usage) -> Energy:
    """The energy of one run, see `ASSUMPTIONS`."""
    arithmetic = sum(row.flops * _OPERATION.get(row.dtype, _OPERATION["float32"]) for row in usage.operators)
    weights_fit = usage.weight_bytes <= usage.cache_bytes
    activations_fit = max(usage.memory, default=0) <= usage.cache_bytes
    return Energy(
        arithmetic,
        usage.weight_bytes * (_CACHE_BYTE if weights_fit else _DRAM_BYTE),
        usage.moved_bytes * (_CACHE_BYTE if activations_fit else _DRAM_BYTE),
    )
