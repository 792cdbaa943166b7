"""float16 and bfloat16: loaded and stored as they are, computed in float32.

A kernel's own buffers are float32 too, so that a sum is rounded once. bfloat16 is converted by integer arithmetic: what
TVM makes of such a cast inside a `Let` is wrong (the bits are read as a number), and around a `Let` it makes two of it,
which the vectoriser refuses.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from backends.cpu.loops import BufferLoad, BufferStore, Expr, Stmt, TensorLoad, Var

_WIDE = "float32"
_BFLOAT = "bfloat16"
_HALF = ("float16", _BFLOAT)
_NAN = 0x7FC0
_ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min)
_COMPARISONS = (tirx.EQ, tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE)


def computed_in_float32(body: Stmt) -> Stmt:
    """The statement without computation in half precision."""
    own: dict[Var, Var] = {}
    tvm_ffi.structural_walk(body, (tirx.AllocBuffer, lambda node: _declare(node.buffer, own)))

    def load(node: TensorLoad) -> Expr:
        buffer = own.get(node.source)
        return node if buffer is None else tirx.Cast(_type(node), BufferLoad(buffer, list(node.indices)))

    def cast(node: tirx.Cast) -> Expr:
        source, target = _element(node.value), _element(node)
        if source == target or not (source in _HALF or target in _HALF):
            return node
        value = _promoted(node.value) if source in _HALF else node.value
        return _rounded(_as(value, _WIDE), target) if target in _HALF else _as(value, target)

    def compare(node: Expr) -> Expr:
        return type(node)(_promoted(node.a), _promoted(node.b)) if _element(node.a) in _HALF else node

    def store(node: BufferStore) -> Stmt:
        if _element(node.value) not in _HALF:
            return node
        buffer = own.get(node.buffer)
        if buffer is not None:
            return BufferStore(buffer, _promoted(node.value), list(node.indices))
        moved = isinstance(node.value, TensorLoad) or _is_call(node.value, "reinterpret")
        value = node.value if moved else _rounded(_promoted(node.value), _element(node.value))
        return BufferStore(node.buffer, value, list(node.indices))

    def allocate(node: tirx.AllocBuffer) -> Stmt:
        return tirx.AllocBuffer(own[node.buffer]) if node.buffer in own else node

    handlers = [(TensorLoad, load), (tirx.Cast, cast), (BufferStore, store), (tirx.AllocBuffer, allocate)]
    return tvm_ffi.structural_map(body, [*handlers, *((kind, compare) for kind in _COMPARISONS)])


def _declare(buffer: Var, own: dict[Var, Var]) -> None:
    if str(buffer.dtype) in _HALF:
        own[buffer] = tirx.decl_buffer(list(buffer.shape), _WIDE, buffer.name, scope=buffer.scope())


def _promoted(value: Expr) -> Expr:
    """An expression of half precision as a float32 one; intermediate results are not rounded."""
    if isinstance(value, tirx.Cast) and _element(value.value) == _WIDE:
        return value.value
    if isinstance(value, _ARITHMETIC):
        return type(value)(_promoted(value.a), _promoted(value.b))
    if isinstance(value, tirx.Select):
        return tirx.Select(value.condition, _promoted(value.true_value), _promoted(value.false_value))
    if isinstance(value, tirx.Let):
        return tirx.Let(value.var, value.value, _promoted(value.body))
    if isinstance(value, tirx.Broadcast):
        return tirx.Broadcast(_promoted(value.value), value.lanes)
    if isinstance(value, tirx.FloatImm):
        return tirx.const(float(value.value), _WIDE)
    if _is_call(value, "if_then_else"):
        return tirx.if_then_else(value.args[0], *(_promoted(branch) for branch in value.args[1:]))
    if _element(value) == _BFLOAT and (isinstance(value, TensorLoad) or _is_call(value, "reinterpret")):
        return _widened(value)
    return _as(value, _WIDE)


def _rounded(value: Expr, dtype: str) -> Expr:
    return _narrowed(value) if dtype == _BFLOAT else _as(value, dtype)


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
