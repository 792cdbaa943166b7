"""How large the cache may be, as text."""

from __future__ import annotations

import re

from optimizer.errors import InputError

__all__ = ["parse_limit"]

_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def parse_limit(text: str, name: str) -> int:
    """Bytes of a size such as `"20GB"` or `"512MiB"`; a number alone is bytes.

    Raises:
        InputError: It is no size.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{name} must be a size such as '20GB', not {text!r}")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))
