"""The code of the guides in docs/ works, block after block."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("guide", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_the_code_of_a_guide_runs(guide: str) -> None:
    text = (ROOT / "docs" / guide).read_text()
    found = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert found
    namespace: dict[str, Any] = {"__name__": "guide"}
    for number, code in enumerate(found, start=1):
        exec(compile(code, f"docs/{guide}, block {number}", "exec", dont_inherit=True), namespace)
    for path in re.findall(r"`((?:optimizer|passes|backends|tests)/[\w/.-]*|[A-Z]+\.md)`", text):
        assert (ROOT / path).exists(), path
