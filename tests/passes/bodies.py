"""A graph in a branch, in a loop, and in a function: a pass has to do its work there too."""

from __future__ import annotations

import re

from optimizer.ir.walk import all_nodes
from optimizer.pass_manager import Pass
from optimizer.testing import check_pass
from passes.remove_unused import RemoveUnused
from tests.passes.transform import read

__all__ = ["assert_becomes_everywhere", "wrapped"]

_HEADER = re.compile(r"g \((\w+\[[^\]]*\]) x\) => \((\w+\[[^\]]*\]) y\)\s*(<.*?>)?\s*\{(.*)\}\s*", re.DOTALL)
_CONSTANT = re.compile(r"(\w+(?:\[[^\]]*\])?) (\w+) = (\{[^}]*\})")


def wrapped(text: str, where: str) -> str:
    """A graph `g (type x) => (type y) <constants> { nodes }` inside a branch, a loop or a function.

    Args:
        text: The graph; its output has the type of its input.
        where: `"if"`, `"loop"` or `"function"`.
    """
    found = _HEADER.fullmatch(text.strip())
    assert found is not None, f"not of the form that can be wrapped: {text}"
    given, result, constants, nodes = found.group(1), found.group(2), found.group(3) or "", found.group(4)
    inner = re.sub(r"\by\b", "y1", nodes)
    if where == "if":
        return f"""g ({given} x, bool[1] flag) => ({result} y) {{ y = If(flag) <
            then_branch = b1 () => ({result} y1) {constants} {{ {inner} }},
            else_branch = b2 () => ({result} y2) {{ y2 = Identity(x) }}> }}"""
    if where == "loop":
        stacked = result.replace("[", "[T,", 1)
        return f"""g ({given} x) => ({stacked} y) <int64 trips = {{2}}, bool go = {{1}}> {{ y = Loop(trips, go) <
            body = b (int64 trip, bool more) => (bool again, {result} y1) {constants} {{
                again = Identity(more) {inner} }}> }}"""
    found_constants = _CONSTANT.findall(constants)
    as_nodes = [f"{name} = Constant<value = {type_} {content}>()" for type_, name, content in found_constants]
    return f"""g ({given} x) => ({result} y) {{ y = local.f(x) }}
        <domain: "local", opset_import: ["" : 23]> f (x) => (y) {{ {" ".join(as_nodes)} {nodes} }}"""


def assert_becomes_everywhere(pass_: Pass, text: str, *op_types: str, in_function: bool = False) -> None:
    """The pass turns the graph into nodes of these operators, wherever it stands.

    Args:
        pass_: The pass.
        text: The graph, as for `wrapped`.
        op_types: The operators.
        in_function: Whether it also does so where the type and the rank of `x` are not known, as in a function.
    """
    for where in ("if", "loop", "function"):
        result = check_pass(pass_, read(wrapped(text, where)))
        RemoveUnused()(result)
        found = [node.op_type for node in all_nodes(result)]
        kept = sorted(name for name in found if name not in ("Constant", "If", "Loop", "f", "Identity"))
        if where != "function" or in_function:
            assert kept == sorted(op_types), f"in a {where}: {found}"
