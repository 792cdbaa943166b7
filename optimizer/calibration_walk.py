"""A model run on calibration data a part at a time.

Only the weights of one part are in use at a time, and of its values only those are kept that later parts read.

A pass that changes a model layer by layer asks for values inside it again and again, each time as the model then is. To
run all of it each time would take the square of its size, and a session of all its weights. Here the nodes before a cut
are run once more, when they are finished, and never again after it.

    with Walk(model, samples, most_bytes) as walk:
        walk.observe(names)     # as the model is now
        walk.cut(node)          # the nodes in front of this one will not change any more
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.calibration import Samples
from optimizer.executable import Array
from optimizer.ir.extract import part_behind, read_values
from optimizer.ir.query import RANDOM_OPERATORS, constant
from optimizer.ir.shapes import Shapes
from optimizer.ort_session import OrtSession
from optimizer.target import detect_cpu

__all__ = ["Walk", "crossing_values", "cut_between"]


class Walk:
    """Runs a model on samples, part by part.

    Args:
        model: May be changed from the last cut on.
        samples: The sets of inputs.
        most_bytes: Of values that are kept in memory; more of them go into a temporary folder.
    """

    def __init__(self, model: ir.Model, samples: Samples, most_bytes: int) -> None:
        self._model = model
        self._inputs = [value.name or "" for value in model.graph.inputs]
        self._kept = _Kept([dict(zip(self._inputs, given, strict=True)) for given in samples], self._inputs, most_bytes)
        self._names: list[str] = []
        self._cuts: list[ir.Node] = []

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *error: object) -> None:
        self._kept.close()

    def cut(self, node: ir.Node) -> None:
        """Say that what stands in front of a node will not change any more. It is run when a value is asked for.

        Args:
            node: Of the main graph; see `cut_between`.
        """
        self._cuts.append(node)

    def observe(self, names: Sequence[str]) -> Iterator[list[Array]]:
        """What some values are on each set of inputs, one set at a time.

        Args:
            names: Inputs of the graph, what nodes behind the last cut compute, or what these read.

        Raises:
            UnsupportedError: ONNX Runtime cannot load the part of the model.
            ExecutionError: It does not run on a set.
        """
        while self._cuts:
            self._advance(self._cuts.pop(0))
        for _, seen in self._run(names):
            yield [np.asarray(seen[name]) for name in names]

    def _advance(self, node: ir.Node) -> None:
        names = [value.name or "" for value in crossing_values(self._model.graph, node)]
        for index, seen in self._run(names):
            self._kept.replace(index, {name: seen[name] for name in names})
        self._names = names

    def _run(self, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Values of each set of inputs, besides all that is kept of it."""
        known = {*self._inputs, *self._names}
        wanted = [name for name in dict.fromkeys(names) if name not in known]
        session: OrtSession | None = None
        given: list[str] = []
        for index in range(len(self._kept)):
            seen = self._kept.load(index)
            if wanted:
                if session is None:
                    part, given = self._part(wanted, known, seen)
                    session = OrtSession.from_model(part, num_threads=detect_cpu().cores)
                results = session.run([seen[name] for name in given])
                seen.update(zip(session.output_names, results, strict=True))
            yield index, seen

    def _part(self, wanted: Sequence[str], known: Collection[str], seen: dict[str, Any]) -> tuple[ir.Model, list[str]]:
        """The nodes that compute values from those that are known, and the names of what they read."""
        part = part_behind(self._model, known, wanted, seen)
        assert part is not None, "what a node reads is kept or computed"
        for value in part.graph.inputs:
            # The next set of inputs may be of another size.
            value.shape = None if value.shape is None else ir.Shape([None] * len(value.shape))
        return part, [value.name or "" for value in part.graph.inputs]


def cut_between(model: ir.Model, shapes: Shapes, parts: Sequence[Collection[ir.Node]]) -> list[ir.Node | None]:
    """Where a model is best cut, so that each part of nodes lies behind the one before it.

    Of the places between two parts that is taken which the fewest values cross.

    Args:
        model: Its main graph is cut.
        shapes: Of the model.
        parts: Nodes of the main graph.

    Returns:
        For each part but the first the node that comes first behind the cut. `None` where there is no cut: the part is
        empty, nodes of it stand in front of some of an earlier one, or what crosses is no tensor.
    """
    nodes = list(model.graph)
    place = {node: index for index, node in enumerate(nodes)}
    crossing = np.zeros(len(nodes) + 1, np.int64)
    impossible = np.zeros(len(nodes) + 1, np.int64)
    for value, last in _last_uses(nodes).items():
        maker = value.producer()
        if maker is not None:
            reach = slice(place[maker] + 1, last + 1)
            crossing[reach] += 1
            impossible[reach] += not isinstance(shapes.type(value), ir.TensorType) or not maker.outputs[0].name
    cuts: list[ir.Node | None] = []
    firsts = [min((place[node] for node in part), default=-1) for part in parts]
    lasts = [max((place[node] for node in part), default=-1) for part in parts]
    for index in range(1, len(parts)):
        behind = [first for first in firsts[index:] if first >= 0]
        places = range(max(lasts[:index]) + 1, min(behind) + 1 if parts[index] else 0)
        possible = [at for at in places if not impossible[at]]
        cuts.append(nodes[min(possible, key=lambda at: (crossing[at], -at))] if possible else None)
    return cuts


def crossing_values(graph: ir.Graph, node: ir.Node) -> list[ir.Value]:
    """The values that are computed in front of a node and read behind it, but for what only hangs on constants."""
    nodes = list(graph)
    at = nodes.index(node)
    place = {each: index for index, each in enumerate(nodes)}
    return [
        value
        for value, last in _last_uses(nodes).items()
        if (maker := value.producer()) is not None and place[maker] < at <= last
    ]


def _last_uses(nodes: Sequence[ir.Node]) -> dict[ir.Value, int]:
    """The place of the last node that reads a value, for those that hang on inputs or chance."""
    fixed: set[ir.Value] = set()
    last: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        read = read_values(node)
        moving = [value for value in read if constant(value) is None and value not in fixed]
        last.update(dict.fromkeys(moving, index))
        if not moving and node.op_type not in RANDOM_OPERATORS:
            fixed.update(node.outputs)
    return last


class _Kept:
    """Values of each set of inputs, in memory up to a bound and in files beyond it."""

    def __init__(self, sets: list[dict[str, Any]], inputs: Sequence[str], most_bytes: int) -> None:
        self._sets = sets
        self._inputs = inputs
        self._free = most_bytes
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._held = [0] * len(sets)
        self._files = 0

    def __len__(self) -> int:
        return len(self._sets)

    def close(self) -> None:
        """Delete the files."""
        if self._folder is not None:
            self._folder.cleanup()

    def load(self, index: int) -> dict[str, Any]:
        """The values of a set by name."""
        return {name: each.load() if isinstance(each, _File) else each for name, each in self._sets[index].items()}

    def replace(self, index: int, values: dict[str, Any]) -> None:
        """Keep these values of a set, beside its inputs, instead of those that were."""
        before = self._sets[index]
        for name, old in before.items():
            if isinstance(old, _File) and name not in values:
                old.path.unlink()
        self._free += self._held[index]
        self._held[index] = 0
        self._sets[index] = {name: before[name] for name in self._inputs}
        for name, array in values.items():
            old = before.get(name)
            self._sets[index][name] = old if isinstance(old, _File) else self._keep(index, array)

    def _keep(self, index: int, array: Any) -> Any:
        if not isinstance(array, np.ndarray) or array.dtype.hasobject or array.nbytes <= self._free:
            size = array.nbytes if isinstance(array, np.ndarray) else 0
            self._free -= size
            self._held[index] += size
            return array
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="tersor-")
        self._files += 1
        return _File(Path(self._folder.name) / str(self._files), array)


class _File:
    """An array in a file of its own; of any type that numpy has, those of other packages among them."""

    def __init__(self, path: Path, array: Array) -> None:
        self.path = path
        self._dtype, self._shape = array.dtype, array.shape
        np.ascontiguousarray(array).tofile(path)

    def load(self) -> Array:
        """Read it."""
        return np.fromfile(self.path, np.uint8).view(self._dtype).reshape(self._shape)
