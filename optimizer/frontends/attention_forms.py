"""`scaled_dot_product_attention` in every form that PyTorch takes, as ONNX's Attention.

PyTorch's exporter translates it for four axes, and for as many heads of the keys as of the queries or, where
`enable_gqa` is set, for fewer. PyTorch itself takes any number of axes from two on, and broadcasts all but the last
two. Here, in this order:

1. Several axes of batches become one; axes that are missing are put in front, so that the first of three are heads.
2. Batches and heads that are to be broadcast are expanded; but not the single head of keys and values that all heads of
   the queries have in common, for Attention has that (Shazeer 2019, "Fast Transformer Decoding").

Dropout is left out: what is compiled is a model at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["attention_forms"]

_AXES = 4
_OWN = 3
"""Axes behind those of the batches: heads, rows, size."""


def attention_forms() -> dict[Any, Any]:
    """The operator and its translation, as `torch.onnx.export` takes them for its `custom_translation_table`."""
    import torch
    from onnxscript.onnx_opset import opset23

    def translated(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        return _Attention(opset23, query, key, value, attn_mask).result(is_causal, scale, gqa=enable_gqa)

    return {torch.ops.aten.scaled_dot_product_attention.default: translated}


@dataclass(frozen=True)
class _Symbolic:
    """A size that only the run knows.

    Attributes:
        name: Sizes of the same name are equal.
        tensor: Has it; any tensor that has is as good.
        axis: Of the tensor, counted from the last one.
    """

    name: Any
    tensor: Any = field(compare=False)
    axis: int = field(compare=False)


_Size = int | _Symbolic


@dataclass(frozen=True)
class _Attention:
    """One call.

    Attributes:
        op: ONNX's operators; each call adds a node to the graph.
        query: [..., heads, rows, size]; as many axes as it has, from two on.
        key: [..., heads, keys, size].
        value: [..., heads, keys, size of a result].
        mask: To be broadcast to [..., heads, rows, keys], or `None`.
    """

    op: Any
    query: Any
    key: Any
    value: Any
    mask: Any

    def result(self, is_causal: bool, scale: float | None, *, gqa: bool) -> Any:
        """[..., heads, rows, size of a result]."""
        given = [self.query, self.key, self.value]
        asked = max(len(each.shape) for each in given)
        axes = max(asked, _AXES)
        batches = [_common(given, axis) for axis in range(-axes, -_OWN)]
        shared = gqa or all(_size(each, -_OWN) == 1 for each in given[1:])
        heads = [_size(each, -_OWN) for each in given] if shared else [_common(given, -_OWN)] * len(given)
        query, key, value = (
            self._of_four_axes(self._in_front(each, axes), each, [*batches, count, _size(each, -2), _size(each, -1)])
            for each, count in zip(given, heads, strict=True)
        )
        mask = None if self.mask is None else self._mask(batches)
        result, *_ = self.op.Attention(query, key, value, attn_mask=mask, scale=scale, is_causal=int(is_causal))
        if asked < _AXES:
            return self.op.Squeeze(result, self._numbers(list(range(_AXES - asked))))
        if asked > _AXES:
            sizes = [*batches, heads[0], _size(self.query, -2), _size(self.value, -1)]
            return self.op.Reshape(result, self._numbers(sizes))
        return result

    def _mask(self, batches: Sequence[_Size]) -> Any:
        """With all rows and keys: ONNX Runtime wants the rows, and ONNX hides the keys that a shorter mask lacks."""
        axes = len(self.mask.shape)
        leading = [_size(self.mask, axis) for axis in range(-axes, -2)]
        if axes >= _AXES and len(batches) > 1:
            leading = [*batches, _size(self.mask, -_OWN)]
        return self._of_four_axes(self.mask, self.mask, [*leading, _size(self.query, -2), _size(self.key, -2)])

    def _in_front(self, tensor: Any, axes: int) -> Any:
        """With so many axes, of which those that it lacks come first."""
        missing = axes - len(tensor.shape)
        return self.op.Unsqueeze(tensor, self._numbers(list(range(missing)))) if missing else tensor

    def _of_four_axes(self, tensor: Any, given: Any, sizes: Sequence[_Size]) -> Any:
        """Expanded to these sizes, and with one axis of all batches.

        Args:
            tensor: What is to be expanded.
            given: The same as it was given, whose sizes are known.
            sizes: Of all axes.
        """
        if [_size(given, axis) for axis in range(-len(sizes), 0)] != list(sizes):
            tensor = self.op.Expand(tensor, self._numbers(sizes))
        return self.op.Reshape(tensor, self._numbers([-1, *sizes[-_OWN:]])) if len(sizes) > _AXES else tensor

    def _numbers(self, sizes: Sequence[_Size]) -> Any:
        """An int64 vector."""
        if all(isinstance(size, int) for size in sizes):
            return self.op.Constant(value_ints=list(sizes))
        parts = [
            self.op.Constant(value_ints=[size])
            if isinstance(size, int)
            else self.op.Shape(size.tensor, start=size.axis, end=size.axis + 1 or None)
            for size in sizes
        ]
        return self.op.Concat(*parts, axis=0)


def _size(tensor: Any, axis: int) -> _Size:
    """Of an axis, counted from the last one; 1 where there is none."""
    if -axis > len(tensor.shape):
        return 1
    found = tensor.shape[axis]
    return found if isinstance(found, int) else _Symbolic(found, tensor, axis)


def _common(tensors: Sequence[Any], axis: int) -> _Size:
    """What these sizes are broadcast to: a known one that is not 1, else one that only the run knows, else 1."""
    sizes = [_size(tensor, axis) for tensor in tensors]
    return min(sizes, key=lambda size: 2 if size == 1 else not isinstance(size, int))
