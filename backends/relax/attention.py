"""What every form of attention is brought to, and attention as one kernel.

Shape letters: B batch, H query heads, K key and value heads, S query positions, P positions of the past,
T = P + new key positions, D head size, E value head size, M positions that the mask covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import relax, sym, te, tirx

from backends.relax.emitter import Emitter
from backends.relax.scalars import cast, wider
from backends.relax.stages import broadcast_index, reduce_rows, row_of, table
from backends.relax.tensor_call import ALONE
from backends.relax.values import prim, static_int

__all__ = ["AttentionSpec", "Heads", "biased", "capped", "emit_one_pass", "heads_first", "in_one_pass", "sizes_of"]

KERNEL = "attention"


@dataclass(frozen=True)
class Heads:
    """Matrices of several heads.

    Attributes:
        x: [B, H, S, D], or [B, S, H, D] where `rows_first`, as the heads lie in a matrix that was not cut up.
        rows_first: Which of the two.
        scale: What a step of bytes stands for; 1 for numbers that stand for themselves.
        zero: The byte that stands for 0.
    """

    x: relax.Var
    rows_first: bool
    scale: float = 1.0
    zero: int = 0

    @property
    def dtype(self) -> str:
        """The type of the elements."""
        return str(self.x.ty.dtype)


@dataclass(frozen=True)
class AttentionSpec:
    """One attention, its inputs in normal form.

    Attributes:
        q: B x H heads of [S, D].
        k: B x K heads of [T, D], the past in front.
        v: B x K heads of [T, E].
        dtype: of the result.
        mask: a bool ("attend") or additive mask, [B|1, H|1, S|1, M|1], or `None`. Positions from M on are not attended.
        valid: [B] int64, how many key positions count, or `None`.
        past: P; the row that sees key j at the diagonal is j - P.
        scale: factor of the products of elements, bytes less their zero points.
        softcap: 0, or where the products are bent to.
        causal: row i sees keys up to i + P (up to i + valid - S where `valid` is given).
        left: how many keys before the diagonal a row sees; -1 for all.
        right: how many keys after it; -1 for all.
        softmax_dtype: the type in which the softmax is computed.
        packed: whether the result is [B, S, H * E] rather than [B, H, S, E].
        output: which of the intermediate scores is wanted, or `None`.
    """

    q: Heads
    k: Heads
    v: Heads
    dtype: str
    mask: relax.Var | None
    valid: relax.Var | None
    past: tirx.Expr
    scale: float
    softcap: float
    causal: bool
    left: int
    right: int
    softmax_dtype: str
    packed: bool
    output: int | None

    @property
    def operands(self) -> list[relax.Var]:
        """What masks the scores, in the order in which `biased` takes it."""
        return [x for x in (self.mask, self.valid) if x is not None]


def capped(score: tirx.Expr, softcap: float) -> tirx.Expr:
    """A score, bent to a limit."""
    if softcap == 0.0:
        return score
    cap = tirx.const(softcap, str(score.expr_ty()))
    return cap * tirx.tanh(score / cap)


def biased(
    spec: AttentionSpec,
    scores: te.Tensor,
    past: tirx.Expr,
    operands: Sequence[te.Tensor],
    index: Sequence[tirx.Expr],
) -> tirx.Expr:
    """A score after scaling, bending and masking; minus infinity where the key is not seen."""
    b, _, row, key = index
    rest = iter(operands)
    mask = next(rest) if spec.mask is not None else None
    valid = next(rest) if spec.valid is not None else None
    score = capped(scores(*index) * tirx.const(spec.scale, scores.dtype), spec.softcap)
    seen: list[tirx.Expr] = []
    if mask is not None:
        score, covered = _with_mask(score, mask, index, scores.shape[3])
        seen += covered
    diagonal = row + (valid(b) - scores.shape[2] if valid is not None else past)
    if spec.causal:
        seen.append(key <= diagonal)
    if spec.left >= 0:
        seen.append(key >= diagonal - spec.left)
    if spec.right >= 0:
        seen.append(key <= diagonal + spec.right)
    if valid is not None:
        seen.append(key < valid(b))
    return tirx.Select(tirx.all(*seen), score, tirx.const(float("-inf"), scores.dtype)) if seen else score


def _with_mask(
    score: tirx.Expr, mask: te.Tensor, index: Sequence[tirx.Expr], keys: tirx.Expr
) -> tuple[tirx.Expr, list[tirx.Expr]]:
    """The score with an additive mask, or the conditions that a boolean one sets."""
    covered = mask.shape[3]
    short = not sym.Analyzer().can_prove_equal(covered, keys)
    at = (*broadcast_index(mask.shape[:3], index[:3]), index[3])
    if mask.dtype == "bool":
        attend = mask(*at)
        return score, [tirx.if_then_else(index[3] < covered, attend, tirx.const(False, "bool")) if short else attend]
    bias = cast(mask(*at), str(score.expr_ty()))
    if not short:
        return score + bias, []
    nothing = tirx.const(float("-inf"), str(score.expr_ty()))
    return score + tirx.if_then_else(index[3] < covered, bias, nothing), []


def sizes_of(heads: Heads) -> list[tirx.Expr]:
    """B, H, S, D."""
    batch, first, second, size = (prim(d) for d in heads.x.ty.shape.values)
    return [batch, second, first, size] if heads.rows_first else [batch, first, second, size]


def heads_first(ctx: Emitter, heads: Heads) -> relax.Var:
    """As [B, H, S, D]."""
    return ctx.emit(relax.op.permute_dims(heads.x, [0, 2, 1, 3])) if heads.rows_first else heads.x


def in_one_pass(ctx: Emitter, spec: AttentionSpec) -> bool:
    """Whether `emit_one_pass` applies: to heads of known sizes in types of the target, with the softmax in float32."""
    size, value_size = (static_int(sizes_of(x)[3]) for x in (spec.q, spec.v))
    if spec.output is not None or size is None or value_size is None or wider(spec.softmax_dtype) != "float32":
        return False
    return ctx.tiles.attends(spec.q.dtype, size)


def emit_one_pass(ctx: Emitter, spec: AttentionSpec) -> relax.Expr:
    """Attention as one kernel of stages, [B, S, H * E] or [B, H, S, E]; the backend need not keep what lies between."""
    batch, heads, rows, _ = sizes_of(spec.q)
    value_size = sizes_of(spec.v)[3]
    inputs = [spec.q.x, spec.k.x, spec.v.x]
    y = ctx.te(lambda *given: _stages(spec, *given), *inputs, spec.past, *spec.operands, primfunc_name_hint=KERNEL)
    if not spec.packed:
        return y
    return relax.op.reshape(y, relax.ShapeExpr([batch, rows, heads * value_size]))


def _group(spec: AttentionSpec) -> int:
    """How many query heads share a key head."""
    heads, key_heads = (static_int(sizes_of(x)[1]) for x in (spec.q, spec.k))
    assert heads is not None and key_heads is not None, "the numbers of heads were checked"
    return heads // key_heads


def _stages(
    spec: AttentionSpec, q: te.Tensor, k: te.Tensor, v: te.Tensor, past: tirx.Expr, *rest: te.Tensor
) -> te.Tensor:
    batch, heads, rows, size = sizes_of(spec.q)
    keys, value_size = sizes_of(spec.v)[2:]
    group = _group(spec)
    zero, nothing = tirx.const(0, "float32"), tirx.const(float("-inf"), "float32")

    def at(tensor: te.Tensor, kind: Heads, b: tirx.Expr, h: tirx.Expr, i: tirx.Expr, d: tirx.Expr) -> tirx.Expr:
        element = tensor(b, i, h, d) if kind.rows_first else tensor(b, h, i, d)
        if kind.zero:
            element = cast(element, "int32") - tirx.const(kind.zero, "int32")
        return cast(element, "float32")

    d = te.reduce_axis((0, size), "d")
    j = te.reduce_axis((0, keys), "j")
    shape = (batch, heads, rows, keys)
    scores = te.compute(
        shape,
        lambda b, h, i, t: te.sum(
            at(q, spec.q, b, h, i, d) * at(k, spec.k, b, tirx.floordiv(h, tirx.const(group, "int64")), t, d), axis=d
        ),
        name="scores",
        attrs={"tersor.kernel": KERNEL, "tersor.group": _group(spec), "tersor.zero": spec.k.zero},
    )
    masked = te.compute(
        shape,
        lambda *i: biased(spec, scores, past, rest, i),
        name="masked",
        attrs={"tersor.kernel": f"{KERNEL}.masked"},
    )
    largest = reduce_rows(shape, {3}, masked, te.max, "largest")
    finite = table(largest.shape, lambda *i: tirx.Select(tirx.EQ(largest(*i), nothing), zero, largest(*i)), "finite")
    powers = te.compute(shape, lambda *i: tirx.exp(masked(*i) - finite(*row_of(i, {3}))), name="powers")
    total = reduce_rows(shape, {3}, powers, te.sum, "total")
    context = te.compute(
        (batch, heads, rows, value_size),
        lambda b, h, i, e: te.sum(
            powers(b, h, i, j) * at(v, spec.v, b, tirx.floordiv(h, tirx.const(group, "int64")), j, e), axis=j
        ),
        name="context",
        attrs={"tersor.kernel": f"{KERNEL}.context"},
    )

    def result(b: tirx.Expr, h: tirx.Expr, i: tirx.Expr, e: tirx.Expr) -> tirx.Expr:
        weight = total(b, h, i)
        mean = context(b, h, i, e) / weight
        if spec.v.scale != 1.0:
            mean = mean * tirx.const(spec.v.scale, "float32")
        return cast(tirx.Select(tirx.EQ(weight, zero), zero, mean), spec.dtype)

    attrs = {
        "tersor.kernel": f"{KERNEL}.output",
        "tersor.packed": int(spec.packed),
        "tersor.scale": spec.v.scale,
        ALONE: 1,
    }
    if spec.packed:
        return te.compute(
            (batch, rows, heads, value_size), lambda b, i, h, e: result(b, h, i, e), name="output", attrs=attrs
        )
    return te.compute((batch, heads, rows, value_size), result, name="output", attrs=attrs)
