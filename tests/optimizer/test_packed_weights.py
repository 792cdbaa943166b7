"""Codes of 4 bits are handed on as they lie in memory."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.ir.weights import tensor_bytes


@pytest.mark.parametrize("size", [4, 5])
def test_packed_codes_are_not_copied(size: int) -> None:
    packed = np.arange(17, 17 + (size + 1) // 2, dtype=np.uint8)
    tensor = ir.PackedTensor(packed, ir.DataType.UINT4, shape=ir.Shape([size]))
    found = tensor_bytes(tensor)
    assert np.shares_memory(found, packed)
    assert found.tobytes() == tensor.tobytes()
