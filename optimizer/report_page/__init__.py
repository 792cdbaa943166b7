"""The report as one page: tables and charts, no script, nothing read from anywhere."""

from __future__ import annotations

import html
import string
from collections.abc import Iterable
from importlib.resources import files
from typing import TYPE_CHECKING

from optimizer.report_page.sections import sections

if TYPE_CHECKING:
    from optimizer.report import Report

__all__ = ["page_of"]


def page_of(report: Report) -> str:
    """The whole page."""
    return string.Template(_file("page.html")).substitute(
        target=html.escape(report.target), css=_file("page.css"), content=_joined(sections(report))
    )


def _joined(parts: Iterable[str]) -> str:
    return "\n".join(part for part in parts if part)


def _file(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
