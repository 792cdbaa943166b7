"""Typed access to the attributes of a node, with the operator's defaults at the call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def get_int(node: ir.Node, name: str, default: int) -> int:
    """An INT attribute."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_int()


def get_float(node: ir.Node, name: str, default: float) -> float:
    """A FLOAT attribute."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_float()


def get_str(node: ir.Node, name: str, default: str) -> str:
    """A STRING attribute."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_string()


def get_ints(node: ir.Node, name: str, default: Sequence[int] | None = None) -> list[int] | None:
    """An INTS attribute; `None` where neither it nor a default is given."""
    attr = node.attributes.get(name)
    if attr is not None:
        return list(attr.as_ints())
    return None if default is None else list(default)


def get_tensor(node: ir.Node, name: str) -> np.ndarray | None:
    """A TENSOR attribute as an array."""
    attr = node.attributes.get(name)
    return None if attr is None else attr.as_tensor().numpy()


def declared_shape(value: ir.Value) -> list[int] | None:
    """The shape that the model declares for a value, if it is known whole and static."""
    if value.shape is None:
        return None
    sizes = [d for d in value.shape if isinstance(d, int)]
    return sizes if len(sizes) == len(value.shape) else None
