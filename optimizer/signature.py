"""What a caller gives to a compiled model, checked against its signature and brought into the form that it runs on.

An array is passed on as it is when its type is the declared one and it is contiguous. Otherwise it is copied where no
value can change: to the machine's byte order, or to a wider type of the same kind (int32 to int64, float32 to float64).
Everything else is refused. Python numbers and lists become arrays of the declared type if they fit in it exactly;
floats are rounded as usual.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optimizer.errors import InputError
from optimizer.executable import Array, TensorSpec

__all__ = ["bind", "is_mapping", "is_torch", "to_torch"]


def bind(specs: Sequence[TensorSpec], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Bring the arguments of a call into the order and form of the signature.

    Args:
        specs: The inputs that are asked for.
        args: Values by position; or one mapping from names to values.
        kwargs: Values by name.

    Raises:
        InputError: An input is missing, unknown, given twice, or of the wrong type, rank or size.
    """
    if len(args) == 1 and is_mapping(args[0]):
        return bind(specs, (), {**args[0], **kwargs})
    values = [_checked(spec, value) for spec, value in zip(specs, _in_order(specs, args, kwargs), strict=True)]
    _check_sizes(specs, values)
    return values


def is_mapping(value: object) -> bool:
    """Whether the value is a mapping from names to inputs. Arrays, the usual case, are told apart fast."""
    return type(value) is not np.ndarray and isinstance(value, Mapping)


def is_torch(value: object) -> bool:
    """Whether the value is a tensor of PyTorch; never imports it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_torch(value: Any) -> Any:
    """A tensor over the array's memory; lists are converted one by one, strings stay arrays."""
    import torch

    if isinstance(value, (list, tuple)):
        return [to_torch(item) for item in value]
    if not isinstance(value, np.ndarray) or value.dtype.kind in "OSU":
        return value
    if value.dtype.isbuiltin == 1:
        return torch.from_numpy(value)
    dtype = getattr(torch, value.dtype.name, None)
    if dtype is None or dtype.itemsize != value.dtype.itemsize:
        return value
    return torch.from_numpy(value.view(f"u{value.dtype.itemsize}")).view(dtype)


def _in_order(specs: Sequence[TensorSpec], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    names = [spec.name for spec in specs]
    if len(args) > len(names):
        raise InputError(f"{len(args)} inputs were given, the model takes {len(names)}: {_list(specs)}")
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names:
            raise InputError(f"unknown input {name!r}; the model takes {_list(specs)}")
        if name in given:
            raise InputError(f"input {name!r} was given twice, by position and by name")
        given[name] = value
    missing = [spec for spec in specs if spec.name not in given and not spec.dtype.startswith("optional(")]
    if missing:
        raise InputError(f"missing input {_list(missing)}")
    return [given.get(name) for name in names]


def _list(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(str(spec) for spec in specs) or "none"


def _checked(spec: TensorSpec, value: Any) -> Any:
    if "(" in spec.dtype:
        return _elements(spec, value)
    fits = type(value) is np.ndarray and value.dtype == _dtype(spec.dtype) and value.flags.c_contiguous
    array: Array = value if fits else _to_array(spec, value)
    if spec.shape is not None and array.ndim != len(spec.shape):
        raise InputError(
            f"input {spec.name!r} must have {len(spec.shape)} dimensions {_shape(spec)}, its shape is {array.shape}"
        )
    return array if fits or not array.ndim else np.ascontiguousarray(array)


def _elements(spec: TensorSpec, value: Any) -> Any:
    """A sequence is a list of arrays, an optional is a value or `None`; their elements are the runtime's to check."""
    if value is None:
        if not spec.dtype.startswith("optional("):
            raise InputError(f"input {spec.name!r} must be a list of arrays, not None")
        return None
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if spec.dtype.startswith("seq("):
        raise InputError(f"input {spec.name!r} must be a list of arrays, not {type(value).__name__}")
    return _plain(value)


def _plain(value: Any) -> Array:
    return np.ascontiguousarray(_from_torch(value) if is_torch(value) else value)


def _to_array(spec: TensorSpec, value: Any) -> Array:
    if is_torch(value):
        value = _from_torch(value)
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array_interface__"):
        return _cast(spec, np.asarray(value))
    if not isinstance(value, (bool, int, float, complex, str, bytes, list, tuple)):
        raise InputError(f"input {spec.name!r} must be an array or a tensor, not {type(value).__name__}")
    return _from_python(spec, value)


def _from_torch(tensor: Any) -> Array:
    import torch

    if tensor.device.type == "meta" or tensor.layout != torch.strided:
        kind = "without data (its device is 'meta')" if tensor.device.type == "meta" else f"in {tensor.layout}"
        raise InputError(f"inputs must be dense tensors with data, one is {kind}: give it data, or call to_dense()")
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16 or str(tensor.dtype).startswith("torch.float8"):
        import ml_dtypes

        bits = tensor.contiguous().view(torch.uint8 if tensor.itemsize == 1 else torch.int16).numpy()
        view: Array = bits.view(getattr(ml_dtypes, str(tensor.dtype).removeprefix("torch.")))
        return view
    array: Array = tensor.numpy()
    return array


def _cast(spec: TensorSpec, array: Array) -> Array:
    if spec.dtype == "string":
        if array.dtype.kind not in "OSU":
            raise _wrong_type(spec, array.dtype.name)
        return array.astype(object)
    wanted = _dtype(spec.dtype)
    if array.dtype == wanted:
        return array
    if array.dtype.newbyteorder("=") == wanted or _widens(array.dtype, wanted):
        return array.astype(wanted)
    raise _wrong_type(spec, array.dtype.name)


def _widens(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether every value of a type is one of the other, of the same kind: (unsigned) integers, floats or complex."""
    kinds = {"u": "iu", "i": "i", "f": "f", "c": "c"}
    return wanted.kind in kinds.get(given.kind, "") and np.can_cast(given, wanted, "safe")


def _from_python(spec: TensorSpec, value: Any) -> Array:
    try:
        raw = np.asarray(value)
    except ValueError as error:
        raise InputError(f"input {spec.name!r}: the nested lists are of unequal length") from error
    if spec.dtype == "string":
        if raw.dtype.kind not in "OSU":
            raise _wrong_type(spec, raw.dtype.name)
        return raw.astype(object)
    wanted = _dtype(spec.dtype)
    allowed = {"b": "b", "i": "iufcV", "u": "iufcV", "f": "fcV", "c": "c"}.get(raw.dtype.kind, "")
    if wanted.kind not in allowed and raw.size:
        raise _wrong_type(spec, raw.dtype.name)
    with np.errstate(all="ignore"):
        array = raw.astype(wanted)
    if raw.dtype.kind in "iu" and not np.array_equal(array.astype(raw.dtype), raw):
        raise InputError(f"input {spec.name!r}: its numbers do not fit in {spec.dtype}")
    return array


@functools.cache
def _dtype(name: str) -> np.dtype[Any]:
    if name == "string":
        return np.dtype(object)
    try:
        known: np.dtype[Any] = np.dtype(name)
    except TypeError:
        import ml_dtypes

        known = np.dtype(getattr(ml_dtypes, name))
    return known


def _wrong_type(spec: TensorSpec, given: str) -> InputError:
    return InputError(f"input {spec.name!r} must be of type {spec.dtype}, not {given}: convert it first")


def _shape(spec: TensorSpec) -> str:
    dims = ", ".join("?" if dim is None else str(dim) for dim in spec.shape or ())
    return f"[{dims}]"


def _check_sizes(specs: Sequence[TensorSpec], values: Sequence[Any]) -> None:
    """Fixed sizes must be as declared; a named size must be the same wherever its name stands."""
    seen: dict[str, tuple[int, TensorSpec]] = {}
    for spec, value in zip(specs, values, strict=True):
        if spec.shape is None or not isinstance(value, np.ndarray):
            continue
        for axis, (wanted, given) in enumerate(zip(spec.shape, value.shape, strict=True)):
            if wanted == given or wanted is None:
                continue
            if isinstance(wanted, int):
                raise InputError(
                    f"input {spec.name!r} must have shape {_shape(spec)}, not {value.shape}: axis {axis} is fixed"
                )
            first, where = seen.setdefault(wanted, (given, spec))
            if first != given and wanted.isidentifier():
                raise InputError(
                    f"dimension {wanted!r} is {first} in input {where.name!r} but {given} in input {spec.name!r}: "
                    "give both the same size"
                )
