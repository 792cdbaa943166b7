"""What the page says, part by part."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from optimizer.energy import ASSUMPTIONS, MODEL, Energy, estimate_energy
from optimizer.executable import KernelTime
from optimizer.ir.figures import Costs
from optimizer.policy_outcome import PolicyOutcome
from optimizer.profile import predicted_cells
from optimizer.report_page.charts import Part, bar, line_chart, parts_bar
from optimizer.text import count, joules, seconds, size
from optimizer.usage import OperatorUsage, Usage

if TYPE_CHECKING:
    from optimizer.layer_errors import LayerError
    from optimizer.report import NearMissRow, PassRow, Report

__all__ = ["sections"]

_MOST_ROWS = 25
_NAMED_NODES = 6


def sections(report: Report) -> Iterator[str]:
    """The parts of the page, in order."""
    yield "<h1>What was done to the model</h1>"
    yield f'<p class="dim">target {_text(report.target)}, precision {_text(report.precision)}</p>'
    checked = report.verification.error is not None
    yield f'<p class="{"good" if checked else "bad"}">{_text(str(report.verification))}</p>'
    if report.cached is not None:
        yield f"<p>{_text(str(report.cached))}</p>"
    if report.tuning is not None:
        yield f'<p style="white-space: pre-line">{_text(str(report.tuning))}</p>'
    yield _cards(report)
    yield _section("Passes", *_passes(report))
    yield _section("Where the time of optimize() went", _stages(report))
    if report.usage is not None:
        yield _section("Where the work of a run goes", *_operators(report.usage, report.usage_before))
        yield _section(
            "Memory of a run", *_memory(report.usage, report.usage_before, report.after), *_allocated(report)
        )
        yield _section("Estimated energy of a run", *_energy(report))
    if report.profile is not None:
        yield _section("Where the time of a run goes, as measured", *_profile(report))
    if report.policy is not None:
        yield _section("Forms of layers, as the precision policy chose them", *_policy(report.policy))
    if report.layers:
        yield _section("Quantized layers, those that cost most first", _layers(report.layers))
    if report.near_misses:
        yield _section("Where a fusion nearly fired", _near_misses(report.near_misses))
    if report.notes:
        yield _section("Notes", _list(report.notes))
    made_with = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield _dim(made_with) if made_with else ""


def _cards(report: Report) -> str:
    before, after = report.before, report.after
    least = "≥ " if after.symbolic else ""
    facts = [
        ("nodes", f"{before.nodes}", f"{after.nodes}"),
        ("parameters", count(before.parameters), count(after.parameters)),
        ("weights", size(before.bytes), size(after.bytes)),
        ("FLOPs", count(before.flops), least + count(after.flops)),
        ("peak of activations", size(before.peak_activation_bytes), least + size(after.peak_activation_bytes)),
    ]
    if report.memory is not None:
        facts.append(("memory of a run", "", size(report.memory.peak)))
    if report.energy is not None:
        was = "" if report.energy_before is None else joules(report.energy_before.total)
        facts.append(("energy, estimated", was, least + joules(report.energy.total)))
    if report.profile is not None:
        facts.append(("time of a run", "", seconds(report.profile.seconds)))
    return f'<div class="cards">{"".join(_card(*fact) for fact in facts)}</div>'


def _card(name: str, was: str, now: str) -> str:
    before = f", {was} before" if was and was != now else ""
    return f"<div><b>{_text(now)}</b><span>{_text(name + before)}</span></div>"


def _passes(report: Report) -> Iterator[str]:
    busy = [row for row in report.passes if row.modified]
    longest = max((row.seconds for row in report.passes), default=0.0) or 1.0
    head = ("pass", "nodes", "parameters", "weights", "FLOPs", "peak", "error", "time", "")
    nodes = [float(report.before.nodes), *(float(row.after.nodes) for row in busy)]
    if len(nodes) > 1:
        across = "nodes after each pass that changed something"
        yield line_chart([("nodes", nodes)], lambda number: f"{number:.0f}", across)
    rows = [_pass_cells(row, longest) for row in busy]
    yield _table(head, rows, right=range(1, 8)) if rows else "<p>No pass changed anything.</p>"
    idle = [row for row in report.passes if not row.modified]
    if idle:
        spent = sum(row.seconds for row in idle)
        names = _text(", ".join(dict.fromkeys(row.name for row in idle)))
        found = f"{len(idle)} runs found nothing ({seconds(spent)})"
        yield f'<details><summary>{found}</summary><p class="dim">{names}</p></details>'


def _pass_cells(row: PassRow, longest: float) -> list[str]:
    def change(attribute: str, text: object) -> str:
        difference = getattr(row.after, attribute) - getattr(row.before, attribute)
        if not difference:
            return ""
        formatted = text(abs(difference)) if callable(text) else ""
        return f'<span class="{"bad" if difference > 0 else "good"}">{"+" if difference > 0 else "−"}{formatted}</span>'

    changes = [
        change(attribute, text)
        for attribute, text in (
            ("nodes", str), ("parameters", count), ("bytes", size), ("flops", count), ("peak_activation_bytes", size),
        )
    ]  # fmt: skip
    error = "" if row.error is None else f"{row.error:.1e}"
    return [_name(row.name), *changes, error, seconds(row.seconds), bar(row.seconds / longest)]


def _stages(report: Report) -> str:
    return parts_bar([Part(name, time, seconds(time)) for name, time in report.stages.items()])


def _operators(now: Usage, was: Usage | None) -> Iterator[str]:
    rows, before = _by_operator(now), _by_operator(was) if was is not None else {}
    totals = now.flops or 1, now.moved_bytes + now.weight_bytes or 1
    order = sorted(rows, key=lambda name: -(rows[name].flops / totals[0] + _bytes(rows[name]) / totals[1]))
    gone = [name for name in before if name not in rows]
    cells = [_operator_cells(rows[name], before.get(name), was is not None, totals) for name in order[:_MOST_ROWS]]
    yield _table(("operator", "nodes", "FLOPs", "", "", "bytes moved", "", ""), cells, right=(1, 2, 3, 5, 6))
    if len(order) > _MOST_ROWS:
        yield _dim(f"and {len(order) - _MOST_ROWS} operators with less")
    if gone:
        names = ", ".join(f"{name} ({before[name].nodes})" for name in gone)
        yield _dim(f"no longer there: {names}")


def _operator_cells(
    row: OperatorUsage, old: OperatorUsage | None, has_before: bool, totals: tuple[int, int]
) -> list[str]:
    number = f"{row.nodes}"
    if has_before and (old is None or old.nodes != row.nodes):
        number = f"{0 if old is None else old.nodes} → {number}"
    work, traffic = row.flops / totals[0], _bytes(row) / totals[1]
    in_work = [count(row.flops), f"{work:.1%}", bar(work, 0)]
    return [_name(row.operator), number, *in_work, size(_bytes(row)), f"{traffic:.1%}", bar(traffic, 1)]


def _by_operator(usage: Usage) -> dict[str, OperatorUsage]:
    groups: dict[str, list[OperatorUsage]] = defaultdict(list)
    for row in usage.operators:
        groups[row.operator].append(row)
    return {name: _sum(name, rows) for name, rows in groups.items()}


def _sum(name: str, rows: Sequence[OperatorUsage]) -> OperatorUsage:
    nodes, flops, weights, moved = (
        sum(figures) for figures in zip(*((r.nodes, r.flops, r.weight_bytes, r.moved_bytes) for r in rows), strict=True)
    )
    return OperatorUsage(name, rows[0].dtype, nodes, flops, weights, moved)


def _bytes(row: OperatorUsage) -> int:
    return row.weight_bytes + row.moved_bytes


def _memory(now: Usage, was: Usage | None, costs: Costs) -> Iterator[str]:
    yield (
        f"<p>Weights take {size(costs.bytes)}. Activations take {size(max(now.memory, default=0))} at most, at "
        f"<b>{_text(now.peak_node)}</b>; the graph runs its nodes in this order:</p>"
    )
    series: list[tuple[str, Sequence[float]]] = [("after", now.memory)]
    across = "activations alive, node after node"
    if was is not None and was.memory != now.memory:
        series.insert(0, ("before", was.memory))
        across += " (dashed: before)"
    yield line_chart(series, size, across)


def _allocated(report: Report) -> Iterator[str]:
    """What the compiled graph takes, whose kernels stand for several nodes and write over what they are done with."""
    if report.memory is not None:
        yield f"<p>As it was compiled: {_text(str(report.memory))}.</p>"


def _energy(report: Report) -> Iterator[str]:
    assert report.usage is not None, "the caller looks"
    now, was = estimate_energy(report.usage), report.energy_before
    whole = max(now.total, was.total if was is not None else 0.0)
    if was is not None:
        yield f"<p>before: {joules(was.total)}</p>{parts_bar(_energy_parts(was), whole)}"
    after = "after: " if was is not None else ""
    yield f"<p>{after}<b>{joules(now.total)}</b></p>{parts_bar(_energy_parts(now), whole)}"
    yield f"<p>Model: {_text(MODEL)}. It is an estimate, for comparing graphs with each other:</p>{_list(ASSUMPTIONS)}"


def _energy_parts(energy: Energy) -> list[Part]:
    parts = (("arithmetic", energy.arithmetic), ("weights", energy.weights), ("activations", energy.activations))
    return [Part(name, amount, joules(amount)) for name, amount in parts]


def _profile(report: Report) -> Iterator[str]:
    profile = report.profile
    assert profile is not None, "the caller looks"
    shown = profile.kernels[:_MOST_ROWS]
    longest = max((profile.share(kernel) for kernel in shown), default=1.0) or 1.0
    rows = [_kernel_cells(kernel, profile.share(kernel), longest) for kernel in shown]
    yield _table(("kernel", "calls", "time", "", "", "predicted", "reached", "nodes"), rows, right=(1, 2, 3, 5, 6))
    if len(profile.kernels) > len(shown):
        rest = sum(kernel.seconds for kernel in profile.kernels[_MOST_ROWS:])
        yield _dim(f"and {len(profile.kernels) - len(shown)} more kernels, {seconds(rest)} together")


def _kernel_cells(kernel: KernelTime, share: float, longest: float) -> list[str]:
    nodes = f"<small>{_text(', '.join(kernel.nodes[:_NAMED_NODES]))}</small>"
    figures = [str(kernel.calls), seconds(kernel.seconds), f"{share:.1%}"]
    return [_name(kernel.name), *figures, bar(share / longest, 2), *predicted_cells(kernel), nodes]


def _layers(rows: Sequence[LayerError]) -> str:
    shown = rows[: 4 * _MOST_ROWS]
    most = max((row.cost for row in shown), default=1.0) or 1.0
    cells = [[_name(row.node), *map(_text, row.cells[1:]), bar(row.cost / most, 3)] for row in shown]
    head = ("layer", "operator", "weight", "SNR of what it gives", "error of the model, by it alone", "")
    more = len(rows) - len(cells)
    return _table(head, cells, right=(3, 4)) + (_dim(f"and {more} more") if more > 0 else "")


def _policy(outcome: PolicyOutcome) -> Iterator[str]:
    yield _dim(str(outcome))
    shown = outcome.largest[: 4 * _MOST_ROWS]
    most = max((row.effect for row in shown), default=1.0) or 1.0
    cells = [
        [_name(row.node), *map(_text, row.cells[1:-1]), bar(row.effect / most, 3), _text(row.reason)] for row in shown
    ]
    yield _table(
        ("layer", "operator", "form", "bits", "size", "error of the model, by it alone", "", "why"), cells, (3, 4, 5)
    )
    more = len(outcome.layers) - len(cells)
    yield _dim(f"and {more} more that are smaller") if more > 0 else ""


def _near_misses(rows: Sequence[NearMissRow]) -> str:
    cells = [[_name(row.pass_name), _name(row.node), _text(row.reason)] for row in rows[: 4 * _MOST_ROWS]]
    more = len(rows) - len(cells)
    return _table(("fusion", "at", "why it did not fire"), cells) + (_dim(f"and {more} more") if more > 0 else "")


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{''.join(parts)}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A table of cells that are markup already."""
    numbers = set(right)
    kinds = [' class="n"' if i in numbers else "" for i in range(len(head))]
    top = "".join(f"<th{kind}>{_text(cell)}</th>" for kind, cell in zip(kinds, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(lines: Iterable[str]) -> str:
    return '<ul class="plain">' + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def _dim(text: str) -> str:
    return f'<p class="dim">{_text(text)}</p>'


def _name(text: str) -> str:
    return f"<code>{_text(text)}</code>"


def _text(text: str) -> str:
    return html.escape(text)
