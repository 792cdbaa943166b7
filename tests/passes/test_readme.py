"""What passes/README.md shows works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import passes
from optimizer.testing import check_pass, difference
from tests.passes.transform import read


def test_the_blocks_run_in_order() -> None:
    text = (Path(passes.__path__[0]) / "README.md").read_text()
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, "passes/README.md", "exec", dont_inherit=True), namespace)
    model = read("g (float[2] x) => (float[2] y) { a = Neg(x) b = Neg(a) y = Relu(b) }")
    result = check_pass(namespace["EliminateDoubleNegation"](), model)
    assert not difference(read("g (float[2] x) => (float[2] y) { y = Relu(x) }"), result, types=False)
