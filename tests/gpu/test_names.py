"""Models whose values and sizes have names that are no identifiers, or are words of a device's language."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from backends import get_backend
from backends.gpu.names import identifier
from optimizer.target import Target
from tests.backends.running import distance, oracle, parse
from tests.gpu.host_cuda import host_gpu
from tests.gpu.rules import nvidia
from tests.gpu.running import check

RANDOM = np.random.default_rng(0)
TEXT = """g (float[a,1,b] first, float[1,c,b] second) => (float[a,c,b] sum, float[a,c,b] share)
    { sum = Add(first, second) share = Softmax(sum) }"""
NAMES = [  # of values, and of sizes; a size that is no identifier is named after its value
    (("/rnn/Shape.0", "-rnn-Shape 0", "%out%", "x y"), ("a/1", "a.1", "1")),
    (("int", "kernel", "half", "float"), ("int", "long", "half")),
    (("x y", "x_y", "x.y", "x/y"), ("x_y_0", "x_y_1", "x y")),
    (("tersor_count", "blockIdx", "get_group_id", "__global"), ("threadIdx", "barrier", "convert_long")),
    (("x", "x_ptr", "restrict", "out"), ("x_ptr", "x_ptr_offset", "x_ptr_base")),
]


def named(values: tuple[str, ...], sizes: tuple[str, ...]) -> onnx.ModelProto:
    model = parse(TEXT)
    new = dict(zip(("first", "second", "sum", "share"), values, strict=True))
    size = dict(zip("abc", sizes, strict=True))
    for value in [*model.graph.input, *model.graph.output]:
        value.name = new[value.name]
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = size[dim.dim_param]
    for node in model.graph.node:
        node.input[:], node.output[:] = [new[v] for v in node.input], [new[v] for v in node.output]
    return model


def inputs(a: int, b: int, c: int) -> list[np.ndarray]:
    return [RANDOM.normal(size=shape).astype(np.float32) for shape in ((a, 1, b), (1, c, b))]


@pytest.mark.parametrize(("values", "sizes"), NAMES)
def test_names_on_opencl(values: tuple[str, ...], sizes: tuple[str, ...]) -> None:
    check(named(values, sizes), inputs(3, 5, 7), inputs(2, 11, 4))


@pytest.mark.without_device
@pytest.mark.parametrize(("values", "sizes"), NAMES)
def test_names_on_cuda(values: tuple[str, ...], sizes: tuple[str, ...]) -> None:
    model = named(values, sizes)
    graph = ShapeInferencePass()(ir.from_proto(model)).model
    with host_gpu():
        executable = get_backend("cuda").compile(graph, Target.parse("cuda:sm_80"), fallback="error")
        for given in (inputs(3, 5, 7), inputs(2, 11, 4)):
            for ours, theirs in zip(executable.run(given, 1), oracle(model, given), strict=True):
                assert distance(ours, theirs) <= 1e-6


@pytest.mark.without_device
@pytest.mark.parametrize(("values", "sizes"), NAMES)
def test_nvidias_compiler_takes_names(values: tuple[str, ...], sizes: tuple[str, ...]) -> None:
    nvidia()
    graph = ShapeInferencePass()(ir.from_proto(named(values, sizes))).model
    get_backend("cuda").compile(graph, Target.parse("cuda:sm_80"), fallback="error")


@pytest.mark.parametrize("name", ["size{}", "size_{}", "n{}"])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_sizes_called_like_those_that_are_computed(name: str, order: tuple[int, ...]) -> None:
    a, b, c = (name.format(number) for number in order)
    model = parse(
        f"""g (float[{a},1,{b}] x, float[q,{c},{b}] z) => (float[u,v,w] y)
        {{ s = Add(x, z) p = Concat<axis=1>(s, s) y = Softmax(p) }}"""
    )
    for first, second, columns, count in ((3, 5, 7, 1), (2, 11, 4, 2)):
        check(
            model, [RANDOM.normal(size=s).astype(np.float32) for s in ((first, 1, columns), (count, second, columns))]
        )


@pytest.mark.without_device
@pytest.mark.parametrize("name", ["", "9", "/", "_", "__x", "a b", "größe", "a.0"])
def test_a_name_becomes_an_identifier(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", identifier(name)) and identifier(name) != name


@pytest.mark.without_device
@pytest.mark.parametrize("name", ["n", "batch_size", "x_ptr"])
def test_an_identifier_stays(name: str) -> None:
    assert identifier(name) == name
