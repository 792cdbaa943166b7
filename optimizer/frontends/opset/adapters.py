"""What changed its meaning between opset 7 and 23, one adapter an operator.

An entry `(18, f)` in `ADAPTERS` means: a node written for an opset below 18 goes through `f`. The entries of an
operator run in order. An operator that is not in the table only gained types or optional attributes, so a node of it is
valid as it stands.
Sources: the operators' change log in the ONNX specification.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from optimizer.frontends.opset.rewrite import Rewrite
from optimizer.ir.query import has_users

__all__ = ["ADAPTERS"]

Adapter = Callable[[Rewrite], None]


def axes_to_input(r: Rewrite) -> None:
    """`axes` became the second input: Squeeze, Unsqueeze, Reduce*."""
    axes = r.attribute_as_input("axes")
    if axes is not None:
        r.set_inputs(r.input(0), axes)


def flatten_around(r: Rewrite) -> None:
    """Softmax, LogSoftmax and Hardmax saw the input flattened to two dimensions at `axis`, which was 1 by default."""
    x = r.input(0)
    axis = r.node.attributes.pop("axis", None) or ir.AttrInt64("axis", 1)
    rank = None if x is None or x.shape is None else len(x.shape)
    if not axis.is_ref() and rank is not None and axis.as_int() in (-1, rank - 1):
        r.update(axis=-1)
        return
    flat = r.before("Flatten", x)
    producer = flat.producer()
    assert producer is not None
    producer.attributes["axis"] = axis
    shape = r.before("Shape", x)
    r.set_inputs(flat)
    r.update(axis=-1)
    r.after(0, "Reshape", shape, allowzero=1)


def batch_normalization(r: Rewrite) -> None:
    """`spatial` is gone, and the outputs for training are others."""
    if r.int_attribute("spatial", 1) != 1:
        raise r.unsupported("spatial=0 (statistics for each pixel) no longer exists")
    r.drop("spatial")
    if has_users(r.node.outputs[1:]):
        raise r.unsupported("its outputs for training are used: export the model in inference mode")
    r.node.resize_outputs(1)


def clip(r: Rewrite) -> None:
    """`min` and `max` became inputs of the input's type."""
    x = r.input(0)
    r.set_inputs(x, *(r.like(r.attribute_as_input(name), x) for name in ("min", "max")))


def dft(r: Rewrite) -> None:
    """`axis` became the third input, and its default changed from 1 to -2."""
    axis = r.int_attribute("axis", 1)
    r.drop("axis")
    r.set_inputs(r.input(0), r.input(1), r.constant(np.array(axis, dtype=np.int64)))


def dropout(r: Rewrite) -> None:
    """`ratio` became an input that inference does not need; before opset 10 the mask had the input's type."""
    r.drop("ratio")
    mask = r.node.outputs[1] if len(r.node.outputs) > 1 else None
    if r.version < 10 and mask is not None:
        if mask.uses() or mask.is_graph_output():
            raise r.unsupported("its mask is used: export the model in inference mode")
        r.node.resize_outputs(1)


def grid_sample(r: Rewrite) -> None:
    """Two interpolation modes have new names."""
    mode = r.string_attribute("mode", "bilinear")
    r.update(mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def group_normalization(r: Rewrite) -> None:
    """Scale and bias, one a group before, are one a channel now."""
    x, scale, bias = r.input(0), r.input(1), r.input(2)
    groups = r.int_attribute("num_groups", 1)
    channels = r.before("Shape", x, start=1, end=2)
    per_group = r.before("Div", channels, r.ints(groups))
    shape = r.before("Concat", r.ints(groups), per_group, axis=0)

    def per_channel(value: ir.Value | None) -> ir.Value:
        column = r.before("Reshape", value, r.ints(groups, 1))
        return r.before("Reshape", r.before("Expand", column, shape), r.ints(-1))

    r.set_inputs(x, per_channel(scale), per_channel(bias))


def pad(r: Rewrite) -> None:
    """`pads` and `value` became inputs."""
    x = r.input(0)
    pads, value = r.attribute_as_input("pads"), r.attribute_as_input("value")
    r.set_inputs(x, pads, r.like(value, x))


def resize_10(r: Rewrite) -> None:
    """Before opset 11 the scales were the second input, and coordinates had no half pixel.

    Which pixel is the nearest was not specified; ONNX Runtime's choice is taken.
    """
    _asymmetric(r, r.input(1), shrink="ceil")


def resize_11(r: Rewrite) -> None:
    """Before opset 13 an empty tensor stood for a `roi` or `scales` left out; and one mode is gone."""
    if r.version < 11:
        return
    inputs = [None if index and _is_empty(value) else value for index, value in enumerate(r.node.inputs)]
    while inputs[-1] is None:
        inputs.pop()
    r.set_inputs(*inputs)
    if r.string_attribute("coordinate_transformation_mode", "half_pixel") != "tf_half_pixel_for_nn":
        return
    if (
        r.string_attribute("mode", "nearest") != "nearest"
        or r.string_attribute("nearest_mode", "round_prefer_floor") != "floor"
    ):
        raise r.unsupported("'tf_half_pixel_for_nn' without nearest_mode='floor' has no equal")
    r.update(coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil")


def roi_align(r: Rewrite) -> None:
    """The half pixel that is now subtracted by default was not before opset 16."""
    r.update(coordinate_transformation_mode="output_half_pixel")


def scan(r: Rewrite) -> None:
    """Scan of opset 8 ran over axis 1 of a batch: an outer scan goes over the batch, the old one is its body."""
    if r.input(0) is not None:
        raise r.unsupported("sequence lengths no longer exist: export the model with opset 9 or later")
    node = r.node
    slices = [_without_batch(value) for value in node.inputs[1:] if value is not None]
    inner = ir.Node("", "Scan", slices, _scan_attributes(node), num_outputs=len(node.outputs))
    for old, new in zip(node.outputs, inner.outputs, strict=True):
        new.type = old.type
        new.shape = None if old.shape is None else ir.Shape(list(old.shape)[1:])
    body = ir.Graph(slices, list(inner.outputs), nodes=[inner], name=f"{node.name}_batch")
    r.set_inputs(*node.inputs[1:])
    node.attributes.clear()
    node.attributes["body"] = ir.AttrGraph("body", body)
    r.update(num_scan_inputs=len(slices))


def _without_batch(value: ir.Value) -> ir.Value:
    shape = None if value.shape is None else ir.Shape(list(value.shape)[1:])
    return ir.Value(name=f"{value.name}_of_one", type=value.type, shape=shape)


def _scan_attributes(node: ir.Node) -> list[ir.Attr]:
    renamed = {"directions": "scan_input_directions"}
    attrs = [ir.Attr(renamed.get(a.name, a.name), a.type, a.value) for a in node.attributes.values()]
    node.attributes.clear()
    return attrs


def scatter(r: Rewrite) -> None:
    """Scatter was renamed."""
    r.node.op_type = "ScatterElements"


def slice_(r: Rewrite) -> None:
    """`starts`, `ends` and `axes` became inputs."""
    x = r.input(0)
    r.set_inputs(x, *(r.attribute_as_input(name) for name in ("starts", "ends", "axes")))


def split_13(r: Rewrite) -> None:
    """`split` became an input."""
    sizes = r.attribute_as_input("split")
    if sizes is not None:
        r.set_inputs(r.input(0), sizes)


def split_18(r: Rewrite) -> None:
    """Equal parts must be counted."""
    if r.input(1) is None:
        r.set_inputs(r.input(0))
        r.update(num_outputs=len(r.node.outputs))


def top_k(r: Rewrite) -> None:
    """`k` became an input, a vector of one number."""
    k = r.attribute_as_input("k")
    r.set_inputs(r.input(0), None if k is None else r.before("Reshape", k, r.ints(1)))


def upsample_9(r: Rewrite) -> None:
    """Before opset 9 `scales` was an attribute."""
    r.set_inputs(r.input(0), r.attribute_as_input("scales"))


def upsample(r: Rewrite) -> None:
    """Upsample is gone: Resize does it, without the half pixel."""
    r.node.op_type = "Resize"
    _asymmetric(r, r.input(1), shrink="floor")


def _asymmetric(r: Rewrite, scales: ir.Value | None, *, shrink: str) -> None:
    r.update(coordinate_transformation_mode="asymmetric", nearest_mode=shrink if _shrinks(scales) else "floor")
    if r.string_attribute("mode", "nearest") == "bilinear":
        r.update(mode="linear")
    r.set_inputs(r.input(0), None, scales)


def _shrinks(scales: ir.Value | None) -> bool:
    """Whether the scales are known and none of them enlarges, but one of them shrinks."""
    tensor = None if scales is None else ir.convenience.get_const_tensor(scales)
    if tensor is None:
        return False
    values = tensor.numpy()
    return bool((values <= 1).all() and (values < 1).any())


def _is_empty(value: ir.Value | None) -> bool:
    if value is None:
        return True
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 0


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

ADAPTERS: dict[str, tuple[tuple[int, Adapter], ...]] = {
    "BatchNormalization": ((14, batch_normalization),),
    "Clip": ((11, clip),),
    "DFT": ((20, dft),),
    "Dropout": ((12, dropout),),
    "GridSample": ((20, grid_sample),),
    "GroupNormalization": ((21, group_normalization),),
    "Hardmax": ((13, flatten_around),),
    "LogSoftmax": ((13, flatten_around),),
    "Pad": ((11, pad),),
    "ReduceSum": ((13, axes_to_input),),
    "Resize": ((11, resize_10), (13, resize_11)),
    "RoiAlign": ((16, roi_align),),
    "Scan": ((9, scan),),
    "Scatter": ((23, scatter),),
    "Slice": ((10, slice_),),
    "Softmax": ((13, flatten_around),),
    "Split": ((13, split_13), (18, split_18)),
    "Squeeze": ((13, axes_to_input),),
    "TopK": ((10, top_k),),
    "Unsqueeze": ((13, axes_to_input),),
    "Upsample": ((9, upsample_9), (23, upsample)),
    **{f"Reduce{kind}": ((18, axes_to_input),) for kind in _REDUCTIONS},
}
