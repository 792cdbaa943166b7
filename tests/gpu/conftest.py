"""The tests of this folder run on PoCL, which the set-up (`make test`) installs where there is no other driver."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from optimizer.errors import TargetError
from tests.gpu.pocl import use

_POCL = Path(sys.prefix) / "pocl"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a device where the set-up could not get one."""
    use(_POCL)
    from backends.opencl.device import devices

    try:
        devices()
    except TargetError as error:
        for item in items:
            if item.get_closest_marker("without_device") is None and Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=str(error)))
