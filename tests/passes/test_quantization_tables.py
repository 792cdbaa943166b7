"""Tables of embeddings in int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.errors import UnsupportedError
from optimizer.ir.near_miss import RewriteResult
from optimizer.reference import run_reference
from optimizer.testing import check_pass
from passes.quantize_int8 import QuantizeInt8
from tests.passes.int8_graphs import RNG, arrays, graph, operators

TABLE = (RNG.standard_normal((128, 32)) * np.geomspace(0.01, 10, 32)).astype(np.float32)
INDEX = np.array([[3, 127, 0], [5, 5, 64]])
TEXT = "g (int64[M,N] i) => (float[M,N,32] y) { y = Gather(table, i) }"


def tables(**options: Any) -> QuantizeInt8:
    return QuantizeInt8(dynamic=True, op_types_to_quantize="MatMul+Gather", **options)


@pytest.mark.parametrize("options", [{}, {"weight_type": "uint8"}, {"kernels": "onnxruntime"}], ids=str)
def test_each_column_is_off_by_half_a_step(options: dict[str, Any]) -> None:
    model = graph(TEXT, table=TABLE)
    result = check_pass(tables(**options), model)
    assert operators(result) == ["Gather", "DequantizeLinear"]
    assert "table" not in result.graph.initializers
    (y,) = run_reference(result, [INDEX])
    assert (np.abs(y - TABLE[INDEX]) <= np.abs(TABLE).max(axis=0) / 254 * 1.001).all()


def test_one_scale_for_all() -> None:
    model = graph(TEXT, table=TABLE)
    (y,) = run_reference(check_pass(tables(per_channel=False), model), [INDEX])
    assert np.abs(y - TABLE[INDEX]).max() <= np.abs(TABLE).max() / 254 * 1.001
    assert np.abs(y - TABLE[INDEX])[..., 0].max() > np.abs(TABLE).max(axis=0)[0] / 254


def test_a_table_that_is_a_weight_as_well_is_kept_in_both_forms() -> None:
    model = graph(
        "g (int64[N] i) => (float[N,128] y) { e = Gather(table, i) y = Gemm<transB = 1>(e, table) }", table=TABLE
    )
    result = check_pass(tables(), model)
    assert "table" in result.graph.initializers and len(arrays(result, ir.DataType.INT8)) == 1


@pytest.mark.parametrize(
    ("text", "table", "reason"),
    [
        (TEXT, TABLE[:50], "its table has 1600 elements only, 4096 make it worth while"),
        (TEXT.replace("Gather", "Gather<axis = 1>"), TABLE.T, "it takes columns, not rows"),
        (TEXT.replace("32]", "4,8]"), TABLE.reshape(128, 4, 8), "its table has rank 3"),
    ],
)
def test_tables_that_stay(text: str, table: np.ndarray, reason: str) -> None:
    result = tables()(graph(text, table=np.ascontiguousarray(table)))
    assert isinstance(result, RewriteResult) and not result.modified
    assert [miss.reason for miss in result.near_misses] == [reason]


def test_tables_that_nobody_asked_for_and_other_types_stay() -> None:
    assert not QuantizeInt8(dynamic=True)(graph(TEXT, table=TABLE)).modified
    assert not tables()(graph(TEXT.replace("float", "double"), table=TABLE.astype(np.float64))).modified
    model = graph(TEXT, table=TABLE)
    model.graph[0].name = "words"
    assert not tables(nodes_to_exclude="words")(model).modified


def test_a_table_that_holds_nan() -> None:
    table = TABLE.copy()
    table[3, 3] = np.nan
    with pytest.raises(UnsupportedError, match="its table 'table' holds NaN or infinity"):
        tables()(graph(TEXT, table=table))
