"""The tables of the benchmarks, and how they get into a file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import nodes, rows
from benchmarks.contests import CONTESTS
from benchmarks.results import RESULTS, Section, versions
from optimizer.errors import InputError

SECTION = Section("Times", ("model", "ms", "how"), frozenset({"model", "how"}), "<!-- begin -->", "<!-- end -->")
SECTIONS = {
    "nodes": nodes.SECTION,
    "compiling": rows.COMPILING,
    **{precision: contest.speed for precision, contest in CONTESTS.items()},
}
ROWS = [("small", "1.5", "warm"), ("large", "20.0", "cold")]


def test_the_table_has_every_cell_below_its_title() -> None:
    output = io.StringIO()
    Console(file=output, width=60).print(SECTION.table(ROWS))
    lines = output.getvalue().splitlines()
    assert lines[0].strip() == "Times"
    small, large = (line.split("│")[1:-1] for line in lines if "small" in line or "large" in line)
    assert [cell.strip() for cell in small] == list(ROWS[0])
    assert small[1] == "  1.5 "  # numbers to the right
    assert large[0] == " large "


def test_brackets_in_a_cell_are_shown_as_they_are() -> None:
    output = io.StringIO()
    Console(file=output, width=60).print(SECTION.table([("[red]x", "1", "[/]")]))
    assert "[red]x" in output.getvalue()


def test_markdown_aligns_numbers_to_the_right() -> None:
    assert SECTION.markdown("By hand.", ROWS) == (
        "By hand.\n\n| model | ms | how |\n|---|---:|---|\n| small | 1.5 | warm |\n| large | 20.0 | cold |"
    )


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("<!-- begin -->\n<!-- end -->\n| other | table |\n")
    assert SECTION.rows(path) == []
    rows = [*ROWS, ("empty", "", "")]
    SECTION.write(SECTION.markdown("By hand.", rows), path)
    assert SECTION.rows(path) == [list(row) for row in rows]


def test_rows_with_other_columns_are_left(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("<!-- begin -->\n| model | s |\n|---|---:|\n| small | 1 |\n<!-- end -->\n")
    assert SECTION.rows(path) == []


def test_writing_replaces_what_is_between_the_markers_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n\n<!-- begin -->\nold\n<!-- end -->\nafter\n")
    SECTION.write("new\nlines", path)
    SECTION.write("new\nlines", path)
    assert path.read_text() == "# Results\n\n<!-- begin -->\nnew\nlines\n<!-- end -->\nafter\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- begin -->\nold\n",
        "old\n<!-- end -->\n",
        "<!-- end -->\nold\n<!-- begin -->\n",
        "<!-- begin -->\n<!-- begin -->\nold\n<!-- end -->\n",
        "<!-- begin -->\nold\n<!-- end -->\n<!-- end -->\n",
        "<!-- end -->\n<!-- begin -->\nold\n<!-- end -->\n",
    ],
)
def test_without_its_markers_a_file_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text(text)
    with pytest.raises(
        InputError, match=r"RESULTS\.md' needs one line '<!-- begin -->' and after it one line '<!-- end"
    ):
        SECTION.write("new", path)
    assert path.read_text() == text


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_the_results_file_takes_the_section_of_every_benchmark(section: Section, tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    before = RESULTS.read_text(encoding="utf-8")
    path.write_text(before, encoding="utf-8")
    section.write("New.", path)
    head, _, rest = before.partition(section.begin)
    tail = rest.partition(section.end)[2]
    assert path.read_text(encoding="utf-8") == f"{head}{section.begin}\nNew.\n{section.end}{tail}"
    assert section.texts < set(section.columns)


def test_versions_are_those_installed() -> None:
    assert versions("pytest", "rich").startswith(f"pytest {pytest.__version__}, rich ")
