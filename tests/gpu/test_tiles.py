"""How constants are packed for a GPU."""

import pytest

from backends.gpu.tiles import GpuTiles
from optimizer.gpus import GPUS

pytestmark = pytest.mark.without_device


@pytest.mark.parametrize("name", sorted(GPUS))
def test_bytes_lie_by_four_where_there_are_tensor_cores(name: str) -> None:
    tiles = GpuTiles(GPUS[name])
    assert tiles.together("uint8") == tiles.together("int8") == (1 if name == "opencl" else 4)
    assert {tiles.together(dtype) for dtype in ("float32", "float16", "bfloat16")} == {1}
