"""Calibration data: sets of inputs that stand for those a model will meet, and what its values are on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.errors import InputError
from optimizer.executable import Array
from optimizer.ir.extract import with_outputs
from optimizer.ir.specs import specs_of
from optimizer.ort_session import OrtSession
from optimizer.signature import bind, is_mapping, is_torch
from optimizer.target import detect_cpu

__all__ = ["Samples", "observe"]

_EXPECTED = "calibration must be an iterable of input dicts, such as [{'x': array}, ...]"


class Samples:
    """Sets of inputs of a graph, in the order of its inputs. They can be gone through more than once.

    Args:
        sets: One list for each run: an array for each input.
    """

    def __init__(self, sets: Sequence[list[Any]]) -> None:
        self._sets = sets

    @classmethod
    def of(cls, graph: ir.Graph, data: object) -> Samples:
        """Check calibration data against the inputs of a graph.

        Args:
            graph: Its inputs say what is asked for.
            data: Any iterable of sets of inputs: each a mapping by name, a sequence by position, or for a graph of one
                input the array or tensor itself. It is gone through once, and its arrays are kept.

        Raises:
            InputError: It is no such iterable, it is empty, or a set does not fit; the set is named by its position.
        """
        if is_mapping(data) or isinstance(data, (np.ndarray, str, bytes)) or is_torch(data):
            raise InputError(f"{_EXPECTED}, not a single {type(data).__name__}")
        if not isinstance(data, Iterable):
            raise InputError(f"{_EXPECTED}, not {type(data).__name__}")
        specs = specs_of(graph.inputs)
        sets = []
        for position, given in enumerate(data):
            by_position = list(given) if isinstance(given, (list, tuple)) else [given]
            try:
                values = bind(specs, (), given) if isinstance(given, Mapping) else bind(specs, by_position, {})
            except InputError as error:
                raise InputError(f"calibration set {position}: {error}") from error
            for spec, value in zip(specs, values, strict=True):
                if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise InputError(
                        f"calibration set {position}: input {spec.name!r} holds NaN or infinity; leave the set out"
                    )
            sets.append(values)
        if not sets:
            raise InputError("calibration holds no set of inputs; give at least one, better a hundred")
        return cls(sets)

    def __len__(self) -> int:
        return len(self._sets)

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self._sets)


def observe(
    model: ir.Model, names: Sequence[str], samples: Samples, num_threads: int | None = None
) -> Iterator[list[Array]]:
    """Run a model on each set of inputs, and give what some of its values are: a list for each set.

    Only one set's values are held at a time.

    Args:
        model: Not changed.
        names: Inputs of the graph, or values that its nodes compute.
        samples: The sets of inputs.
        num_threads: As many as there are cores when not given.

    Raises:
        UnsupportedError: ONNX Runtime cannot load the model.
        ExecutionError: The model does not run on a set.
    """
    inputs = [value.name for value in model.graph.inputs]
    wanted = list(dict.fromkeys(name for name in names if name not in inputs))
    session = OrtSession.from_model(with_outputs(model, wanted), num_threads=num_threads or detect_cpu().cores)
    for given in samples:
        seen = dict(zip(session.output_names, session.run(given), strict=True))
        seen.update(zip(inputs, given, strict=True))
        yield [np.asarray(seen[name]) for name in names]
