"""Numbers and tables as plain text."""

from __future__ import annotations

import io
import math

from rich.console import Console, RenderableType

__all__ = ["count", "decibels", "joules", "render", "seconds", "size"]

_WIDTH = 140


def render(*parts: RenderableType) -> str:
    """What `rich` would show, without colours."""
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_terminal=False, highlight=False)
    for part in parts:
        console.print(part, markup=False)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def count(number: float) -> str:
    """`22.4 M`, three digits and a decimal prefix."""
    return _scaled(number, 1000, ("", " k", " M", " G", " T", " P"))


def size(number_of_bytes: float) -> str:
    """`85.3 MiB`, three digits and a binary prefix."""
    return _scaled(number_of_bytes, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def seconds(duration: float) -> str:
    """`1.23 ms`, three digits."""
    if duration >= 0.9995:
        return f"{duration:.3g} s"
    return f"{duration * 1e3:.3g} ms" if duration >= 0.9995e-3 else f"{duration * 1e6:.3g} µs"


def joules(energy: float) -> str:
    """`3.21 mJ`, three digits."""
    for factor, unit in ((1.0, "J"), (1e3, "mJ"), (1e6, "µJ")):
        if energy * factor >= 0.9995:
            return f"{energy * factor:.3g} {unit}"
    return f"{energy * 1e9:.3g} nJ"


def decibels(error: float) -> str:
    """`31.4 dB`: the ratio of signal to noise, for a relative error."""
    return "no noise" if error <= 0 else f"{-20 * math.log10(error):.1f} dB" if math.isfinite(error) else "no signal"


def _scaled(number: float, base: int, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if abs(number) < base:
            return f"{number:.0f}{unit}" if abs(number) >= 100 or float(number).is_integer() else f"{number:.3g}{unit}"
        number /= base
    return f"{number:.3g}{units[-1]}"
