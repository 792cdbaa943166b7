"""Integers that depend on symbolic dimensions: polynomials with integer coefficients over named sizes.

A `Dim` is an `int` or, when it depends on a symbol, an `Expr`. Equal polynomials are equal objects by value, so `(N +
1) * 2` and `2 * N + 2` compare equal. What is no polynomial (a rounded quotient, a maximum) becomes a symbol of its
own, named by its text. Every symbol stands for a size, so it is never negative; the functions that make symbols
demand it of their arguments.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

__all__ = [
    "Dim",
    "Expr",
    "at_least_zero",
    "exact_div",
    "floor_div",
    "is_at_least",
    "is_limited",
    "maximum",
    "minimum",
    "modulo",
    "parse_dim",
    "product",
    "symbol",
]

Dim: TypeAlias = "int | Expr"
Monomial: TypeAlias = tuple[str, ...]

_MAX_TERMS = 32
_MAX_DEGREE = 12
_MAX_COEFFICIENT = 2**62
_MAX_TEXT = 300
"""A product that grows beyond these becomes one symbol, and a symbol with a longer text is named by a hash of it."""
_MAX_PARSED = 200
"""A name longer than this many characters is not looked into."""


class Expr:
    """A polynomial that is not a plain integer. Make one with `symbol`, then with `+`, `-` and `*`."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms = terms
        self._hash = hash(frozenset(terms.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Dim) -> Dim:
        terms = dict(self.terms)
        for monomial, coefficient in _terms(other).items():
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return _normal(terms)

    def __mul__(self, other: Dim) -> Dim:
        right = _terms(other)
        if not _stays_small(self.terms, right):
            if not (is_at_least(self, 0) and is_at_least(other, 0)):
                raise OverflowError(
                    "the product has too many terms, and it may be negative, so no symbol can stand for it"
                )
            return _compound(f"({self})*({other})")
        terms: dict[Monomial, int] = {}
        for left_monomial, left_coefficient in self.terms.items():
            for right_monomial, right_coefficient in right.items():
                monomial = tuple(sorted(left_monomial + right_monomial))
                terms[monomial] = terms.get(monomial, 0) + left_coefficient * right_coefficient
        return _normal(terms)

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + -other

    def __rsub__(self, other: Dim) -> Dim:
        return -self + other

    __radd__ = __add__
    __rmul__ = __mul__

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols that it is made of."""
        return frozenset(name for monomial in self.terms for name in monomial)

    def __str__(self) -> str:
        text = ""
        for monomial, coefficient in sorted(self.terms.items(), key=lambda item: (-len(item[0]), item[0])):
            factors = [*([] if abs(coefficient) == 1 and monomial else [str(abs(coefficient))]), *monomial]
            sign = "-" if coefficient < 0 else "+"
            text += f" {sign} " if text else sign.replace("+", "")
            text += "*".join(factors)
        return text

    __repr__ = __str__


def symbol(name: str) -> Expr:
    """The size called `name`."""
    return Expr({(name,): 1})


def product(dims: Iterable[Dim]) -> Dim:
    """The product of all; 1 for none."""
    return functools.reduce(operator.mul, dims, 1)


def exact_div(numerator: Dim, denominator: Dim) -> Dim | None:
    """The quotient when it is provably a whole number (wherever the denominator is not 0), else `None`."""
    if numerator == denominator:
        return 1
    divisors = _terms(denominator)
    if len(divisors) != 1:
        return None
    ((divisor, by),) = divisors.items()
    if by == 0:
        return None
    quotient: dict[Monomial, int] = {}
    for monomial, coefficient in _terms(numerator).items():
        rest = _without(monomial, divisor)
        if rest is None or coefficient % by:
            return None
        quotient[rest] = coefficient // by
    return _normal(quotient)


def floor_div(numerator: Dim, denominator: Dim) -> Dim:
    """The quotient, rounded down. Neither may be negative unless both are plain; the denominator must not be 0."""
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator // denominator
    exact = exact_div(numerator, denominator)
    return _compound(f"floor(({numerator})/({denominator}))") if exact is None else exact


def modulo(numerator: Dim, denominator: Dim) -> Dim:
    """The remainder. Neither may be negative unless both are plain; the denominator must not be 0."""
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator % denominator
    return 0 if exact_div(numerator, denominator) is not None else _compound(f"Mod({numerator}, {denominator})")


def maximum(left: Dim, right: Dim) -> Dim:
    """The larger one; a symbol of its own when that cannot be told, and then neither may be negative."""
    return _extremum("Max", left, right)


def minimum(left: Dim, right: Dim) -> Dim:
    """The smaller one; a symbol of its own when that cannot be told, and then neither may be negative."""
    return _extremum("Min", left, right)


def is_at_least(value: Dim, bound: int) -> bool:
    """Whether `value >= bound` holds for all sizes; `False` also when it cannot be told."""
    if isinstance(value, int):
        return value >= bound
    return value.terms.get((), 0) >= bound and all(c >= 0 for monomial, c in value.terms.items() if monomial)


def at_least_zero(value: Dim) -> Dim:
    """The value, or 0 where it is negative; a symbol of its own when that cannot be told."""
    if isinstance(value, int):
        return max(value, 0)
    return value if is_at_least(value, 0) else _compound(f"Max(0, {value})")


def is_limited(part: Dim, whole: Dim) -> bool:
    """Whether `part` is `minimum(whole, limit)` for some limit above 1, so that one is 1 only if both are."""
    text = str(part)
    if not text.startswith("Min("):
        return False
    words = text[4:-1].split(", ")
    return any(
        limit.isdigit() and int(limit) > 1 and part == minimum(whole, int(limit)) for limit in (words[0], words[-1])
    )


@functools.lru_cache(maxsize=4096)
def parse_dim(text: str) -> Dim:
    """Read the text of an `Expr`, or of what an exporter writes (`"2*batch + 1"`); any other text names one symbol."""
    if text.isidentifier() or len(text) > _MAX_PARSED:
        return symbol(text)
    try:
        return _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError):
        return symbol(text)


def _extremum(name: str, left: Dim, right: Dim) -> Dim:
    difference = left - right
    if is_at_least(difference, 0):
        return left if name == "Max" else right
    if is_at_least(-difference, 0):
        return right if name == "Max" else left
    first, second = sorted((str(left), str(right)))
    return _compound(f"{name}({first}, {second})")


def _stays_small(left: Mapping[Monomial, int], right: Mapping[Monomial, int]) -> bool:
    return (
        len(left) * len(right) <= _MAX_TERMS
        and max(map(len, left)) + max(map(len, right)) <= _MAX_DEGREE
        and max(map(abs, left.values())) * max(map(abs, right.values())) <= _MAX_COEFFICIENT
    )


def _compound(text: str) -> Expr:
    if len(text) > _MAX_TEXT:
        text = "h" + hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    return symbol(text)


def _terms(value: Dim) -> Mapping[Monomial, int]:
    return value.terms if isinstance(value, Expr) else {(): value}


def _normal(terms: dict[Monomial, int]) -> Dim:
    terms = {monomial: coefficient for monomial, coefficient in terms.items() if coefficient}
    if not terms:
        return 0
    if len(terms) == 1 and () in terms:
        return terms[()]
    return Expr(terms)


def _without(monomial: Monomial, divisor: Monomial) -> Monomial | None:
    rest = list(monomial)
    for name in divisor:
        if name not in rest:
            return None
        rest.remove(name)
    return tuple(rest)


_OPERATORS: dict[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: floor_div,
    ast.Mod: modulo,
}
_FUNCTIONS: dict[str, Callable[[Dim, Dim], Dim]] = {
    "Max": maximum,
    "max": maximum,
    "Min": minimum,
    "min": minimum,
    "Mod": modulo,
}


def _evaluate(node: ast.expr) -> Dim:
    """Raises `ValueError` on what is no polynomial."""
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _apply(_OPERATORS[type(op)], _evaluate(left), _evaluate(right))
        case ast.Call(func=ast.Name(id="floor"), args=[ast.BinOp(left=left, op=ast.Div(), right=right)]):
            return _apply(floor_div, _evaluate(left), _evaluate(right))
        case ast.Call(func=ast.Name(id=name), args=[first, second]) if name in _FUNCTIONS:
            return _apply(_FUNCTIONS[name], _evaluate(first), _evaluate(second))
    raise ValueError(ast.dump(node))


def _apply(function: Callable[[Dim, Dim], Dim], left: Dim, right: Dim) -> Dim:
    if function in (floor_div, modulo) and right == 0:
        raise ValueError("division by zero")
    return function(left, right)
