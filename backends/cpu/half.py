"""float16 and bfloat16: loaded and stored as they are, computed in float32.

A kernel's own buffers are float32 too, so that a sum is rounded once. bfloat16 is converted by integer arithmetic, or
rounded by the processor's own instruction: what TVM makes of such a cast inside a `Let` is wrong (the bits are read as
a number), and around a `Let` it makes two of it, which the vectoriser refuses.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from backends.cpu.bfloat16 import add_products, is_pair_product, rounded
from backends.cpu.operations import operation
from backends.relax.loops import BufferLoad, BufferStore, Expr, Stmt, TensorLoad, Var, substitute

_WIDE = "float32"
_BFLOAT = "bfloat16"
_HALF = ("float16", _BFLOAT)
_NAN = 0x7FC0
_UNROUNDED = "unrounded"
_ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min)
_COMPARISONS = (tirx.EQ, tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE)


def unrounded(value: Expr, dtype: str) -> Expr:
    """A float32 in place of a `dtype` that it would otherwise be rounded to; it is where it is stored.

    `computed_in_float32` takes this mark away.
    """
    if dtype not in _HALF:
        return value
    return tirx.call_intrin(_with_lanes(dtype, value), operation(f"tersor.{_UNROUNDED}"), value)


def widened(value: Expr) -> Expr:
    """A number, or a vector of them, as float32."""
    return _as(value, _WIDE)


def computed_in_float32(body: Stmt, *, native: bool = False) -> Stmt:
    """The statement without computation in half precision.

    Args:
        body: a kernel's loop nests.
        native: whether the processor has AVX512_BF16.
    """
    return _Widening(native).of(body)


class _Widening:
    """One walk over the nests of a kernel; `own` gives the float32 buffer for each of its buffers of half precision."""

    def __init__(self, native: bool) -> None:
        self.native = native
        self.own: dict[Var, Var] = {}

    def of(self, body: Stmt) -> Stmt:
        """The rewritten body."""
        tvm_ffi.structural_walk(body, (tirx.AllocBuffer, lambda node: self._declare(node.buffer)))
        handlers = [
            (TensorLoad, self._load),
            (tirx.Cast, self._cast),
            (BufferStore, self._store),
            (tirx.AllocBuffer, self._allocate),
            *((kind, self._compare) for kind in _COMPARISONS),
        ]
        return tvm_ffi.structural_map(body, handlers)

    def _declare(self, buffer: Var) -> None:
        if str(buffer.dtype) in _HALF:
            self.own[buffer] = tirx.decl_buffer(list(buffer.shape), _WIDE, buffer.name, scope=buffer.scope())

    def _is_own(self, buffer: Var) -> bool:
        return any(buffer.same_as(wide) for wide in self.own.values())

    def _load(self, node: TensorLoad) -> Expr:
        buffer = self.own.get(node.source)
        return node if buffer is None else tirx.Cast(_type(node), BufferLoad(buffer, list(node.indices)))

    def _cast(self, node: tirx.Cast) -> Expr:
        source, target = _element(node.value), _element(node)
        if source == target or not (source in _HALF or target in _HALF):
            return node
        value = self._promoted(node.value) if source in _HALF else node.value
        return self._rounded(_as(value, _WIDE), target) if target in _HALF else _as(value, target)

    def _compare(self, node: Expr) -> Expr:
        if _element(node.a) not in _HALF:
            return node
        return type(node)(self._promoted(node.a), self._promoted(node.b))

    def _store(self, node: BufferStore) -> Stmt:
        if _element(node.value) not in _HALF:
            return node
        buffer = self.own.get(node.buffer)
        if buffer is not None:
            return BufferStore(buffer, self._promoted(node.value), list(node.indices))
        moved = isinstance(node.value, TensorLoad) or _is_call(node.value, "reinterpret")
        value = node.value if moved else self._rounded(self._promoted(node.value), _element(node.value))
        return BufferStore(node.buffer, value, list(node.indices))

    def _allocate(self, node: tirx.AllocBuffer) -> Stmt:
        return tirx.AllocBuffer(self.own[node.buffer]) if node.buffer in self.own else node

    def _promoted(self, value: Expr) -> Expr:
        """An expression of half precision as a float32 one; intermediate results are not rounded."""
        if isinstance(value, tirx.Cast) and isinstance(value.value, TensorLoad) and self._is_own(value.value.source):
            return value.value
        if isinstance(value, _ARITHMETIC):
            return type(value)(self._promoted(value.a), self._promoted(value.b))
        if isinstance(value, tirx.Select):
            branches = (self._promoted(branch) for branch in (value.true_value, value.false_value))
            return tirx.Select(value.condition, *branches)
        if isinstance(value, tirx.Let):
            return self._promoted_let(value)
        if isinstance(value, tirx.Shuffle):
            return tirx.Shuffle([self._promoted(vector) for vector in value.vectors], list(value.indices))
        if isinstance(value, tirx.Broadcast):
            return tirx.Broadcast(self._promoted(value.value), value.lanes)
        if isinstance(value, tirx.FloatImm):
            return tirx.const(float(value.value), _WIDE)
        if is_pair_product(value):
            total, a, b = value.args
            return add_products(self._promoted(total), a, b, native=self.native)
        if _is_call(value, _UNROUNDED):
            return value.args[0]
        if _is_call(value, "if_then_else"):
            return tirx.if_then_else(value.args[0], *(self._promoted(branch) for branch in value.args[1:]))
        if _element(value) == _BFLOAT and (isinstance(value, TensorLoad) or _is_call(value, "reinterpret")):
            return _widened(value)
        return _as(value, _WIDE)

    def _promoted_let(self, value: tirx.Let) -> Expr:
        """A name for a number of half precision becomes one for the float32 that it would be rounded from."""
        if _element(value.value) not in _HALF:
            return tirx.Let(value.var, value.value, self._promoted(value.body))
        named = self._promoted(value.value)
        wide = Var(value.var.name, named.expr_ty())
        body = substitute(value.body, {value.var: unrounded(wide, _element(value.value))})
        return tirx.Let(wide, named, self._promoted(body))

    def _rounded(self, value: Expr, dtype: str) -> Expr:
        if dtype != _BFLOAT:
            return _as(value, dtype)
        return _bits_as(rounded(value), _BFLOAT) if self.native else _narrowed(value)


def _is_call(value: Expr, name: str) -> bool:
    return isinstance(value, Call) and str(getattr(value.op, "name", "")).rpartition(".")[2] == name


def _widened(value: Expr) -> Expr:
    bits = _as(_bits_as(value, "uint16"), "uint32")
    return _bits_as(tirx.shift_left(bits, _number(16, bits)), _WIDE)


def _narrowed(value: Expr) -> Expr:
    """Rounded to the nearest bfloat16, ties to even; a NaN stays one."""
    source = _bits_as(value, "uint32")
    bits = Var("bits", source.expr_ty())
    odd = tirx.bitwise_and(tirx.shift_right(bits, _number(16, bits)), _number(1, bits))
    rounded = _as(tirx.shift_right(bits + odd + _number(0x7FFF, bits), _number(16, bits)), "uint16")
    magnitude = tirx.bitwise_and(bits, _number(0x7FFFFFFF, bits))
    chosen = tirx.Select(magnitude > _number(0x7F800000, bits), _number(_NAN, rounded), rounded)
    return _bits_as(tirx.Let(bits, source, chosen), _BFLOAT)


def _type(value: Expr) -> str:
    return str(value.expr_ty())


def _element(value: Expr) -> str:
    """The element type, without the number of lanes."""
    return _type(value).partition("x")[0]


def _with_lanes(element: str, value: Expr) -> str:
    _, x, lanes = _type(value).partition("x")
    return f"{element}{x}{lanes}"


def _as(value: Expr, element: str) -> Expr:
    return value if _element(value) == element else tirx.Cast(_with_lanes(element, value), value)


def _bits_as(value: Expr, element: str) -> Expr:
    return tirx.reinterpret(_with_lanes(element, value), value)


def _number(value: int, like: Expr) -> Expr:
    return tirx.const(value, _type(like))
