"""The count of nodes beside other optimizers: what its rows say, and what is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks import node_contestants, nodes
from benchmarks.node_cases import NodeCase
from benchmarks.node_contestants import Left
from benchmarks.nodes import FAILED, Row


@pytest.fixture
def row() -> Row:
    case = NodeCase("BERT", 20, "sdpa", Path("x.onnx"), [], 12)
    left = {"tersor": Left(50, 0.5, 12, 0, 1e-7), "OnnxSlim": Left(120, 1.0), "onnxsim": Left(100, 2.0)}
    return Row(case, {**left, "ONNX Runtime": FAILED})


def test_the_share_is_of_the_best_that_did_not_fail(row: Row) -> None:
    assert row.share == 0.5
    cells = dict(zip(nodes.COLUMNS, row.cells(), strict=True))
    assert cells["ONNX Runtime"] == "failed"
    assert cells["fused"] == "12 of 12"
    assert cells["times OnnxSlim's"] == "0.50"


def test_our_own_result_is_counted_and_compared(tmp_path: Path) -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]> g (float[1,2,3,4] q, float[1,2,3,4] k) => (float[1,2,3,4] y) {
        t = Transpose<perm = [0,1,3,2]>(k) a = MatMul(q, t) p = Softmax(a) y = MatMul(p, k) }"""
    )
    path = tmp_path / "attention.onnx"
    ir.save(model, path)
    inputs = [np.random.default_rng(seed).standard_normal((1, 2, 3, 4), np.float32) for seed in (0, 1)]
    left = node_contestants.run("tersor", path, inputs)
    assert (left.nodes, left.fused, left.unfused) == (1, 1, 0)
    assert left.error is not None
    assert left.error < 1e-5
