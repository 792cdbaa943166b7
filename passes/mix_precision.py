"""Give each layer the number of bits that pays: in float32, with 8 bits, or with weights of 4 bits in blocks.

1. Every form is made of all layers: `int8` by `smooth-quant` and `quantize-int8`, `int8-dynamic` by the latter alone,
   `int4-64` and its like by `quantize-int4`.
2. What each layer costs in each form is measured, and a mix is searched for that keeps to the budget: see
   `passes.quantization.policy_search`.
3. The nodes that do a layer's work in its form take the place of the layer.

In a large model, GPTQ and its like take minutes for each form. Under a bound of bytes, only the form of 4 bits that the
mix will have most of is made as the policy asks before the search: what it loses decides what eight bits are worth
instead. Others are rounded to nearest for the search, where they look worse than they will be, and those of the mix
that was found are made afterwards, each layer once. Where sets were kept to measure with, all 4-bit weights are made
anew then, from all sets: the error that is told is the one from before, on data that nothing was learned from.

Layers that read one weight take one form. A layer whose weight something else reads stays as it is.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from optimizer.calibration import Samples
from optimizer.errors import InputError, PolicyError
from optimizer.ir.edit import Editor, Scope
from optimizer.ir.near_miss import NearMiss, RewriteResult
from optimizer.ir.provenance import inherit, label, origins
from optimizer.ir.query import is_op
from optimizer.ir.specs import specs_of
from optimizer.ir.weights import weight_bytes
from optimizer.layer_board import FLOAT, LayerBoard, Unit, find_units, names_of
from optimizer.layer_slices import LAYERS, Copier
from optimizer.ort_session import OrtSession
from optimizer.pass_manager import Pass, call_pass
from optimizer.policy_outcome import LayerChoice, PolicyOutcome
from optimizer.precision_policy import PrecisionPolicy, block_size
from optimizer.signature import bind
from optimizer.target import detect_cpu
from optimizer.text import size
from passes.quantization.knapsack import Choice, Offer, size_of, steps
from passes.quantization.policy_amount import learns_again, makes_later, split_sets
from passes.quantization.policy_bound import Bound
from passes.quantization.policy_forms import in_form, int4_form
from passes.quantization.policy_search import Search, relative_error
from passes.quantization.writer import drop_orphans, unused_constants

__all__ = ["MixPrecision"]


@dataclasses.dataclass(frozen=True)
class MixPrecision(Pass):
    """Quantizes layers as a `PrecisionPolicy` asks.

    Attributes:
        kernels: Who will compute: `"tersor"` or `"onnxruntime"`; see `quantize-int8`.
        policy: What is asked for; not an option in a pipeline string.
        samples: Calibration data; `optimize(calibration=...)` gives it.
        progress: Called after each run with how many are done, how many there are, and what it was.
        chosen: Called with what came of it.
    """

    kernels: str = "tersor"
    policy: PrecisionPolicy | None = dataclasses.field(default=None, repr=False, compare=False)
    samples: Samples | None = dataclasses.field(default=None, repr=False, compare=False)
    progress: Callable[[int, int, str], None] | None = dataclasses.field(default=None, repr=False, compare=False)
    chosen: Callable[[PolicyOutcome], None] | None = dataclasses.field(default=None, repr=False, compare=False)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Choose, and change the main graph.

        Raises:
            InputError: There is no policy or no calibration data, a pattern fits no layer, or a form is impossible for
                a layer that is to be kept in it.
            PolicyError: The budget cannot be met.
            UnsupportedError: ONNX Runtime cannot run the model with all its forms.
        """
        if self.policy is None:
            raise InputError("mix-precision needs a policy: give optimize(precision=PrecisionPolicy(...))")
        if self.samples is None:
            raise InputError(
                "a PrecisionPolicy needs calibration data, on which it measures what each layer costs: give "
                "optimize(calibration=[{...}, ...])"
            )
        _check_patterns(model, self.policy)
        wanted = dict.fromkeys((*self.policy.forms, *self.policy.keep.values()))
        learned, measured, runs = split_sets(model, self.samples)
        forms, misses = {}, []
        later = makes_later(self.policy, model, len(wanted), runs)
        searched = dataclasses.replace(self.policy, method="rtn") if later else self.policy
        for form in wanted:
            if form != FLOAT:
                forms[form], missed = in_form(model, form, searched, self.kernels, learned, self.progress)
                misses += [dataclasses.replace(miss, reason=f"{form}: {miss.reason}") for miss in missed]
        units, alone = find_units(model, forms)
        ahead = None
        if later:
            ahead = Bound(self.policy, units, _kept(units, self.policy), weight_bytes(model)).fullest_four_bits()
        if ahead is not None:
            forms[ahead], _ = in_form(model, ahead, self.policy, self.kernels, learned, self.progress)
            units, alone = find_units(model, forms)
        nodes = {label(node): node for node in model.graph}
        misses += [NearMiss(name, reason, origins(nodes[name])) for name, reason in alone.items()]
        if not units:
            return RewriteResult(model, False, tuple(dict.fromkeys(misses)))
        choosing = _Choosing(self, self.policy, model, units, measured, runs)
        choice = choosing.choose()
        again = learns_again(self.policy, self.samples, learned)
        anew = {form for form in wanted if block_size(form) is not None and (again or (later and form != ahead))}
        outputs = [] if again else _outputs(model, measured)
        modified = _take(model, units, [FLOAT if form in anew else form for form in choice])
        for form in dict.fromkeys(form for form in choice if form in anew):
            values = {n.outputs[0].name or "" for u, f in zip(units, choice, strict=True) if f == form for n in u.nodes}
            pass_ = int4_form(form, self.policy, self.kernels, self.samples if again else learned, self.progress)
            modified |= call_pass(dataclasses.replace(pass_, values=frozenset(values)), model)[0].modified
        if self.chosen is not None:
            error = choosing.error(choice) if again else relative_error(_outputs(model, measured), outputs)
            self.chosen(choosing.outcome(choice, error))
        return RewriteResult(model, modified, tuple(dict.fromkeys(misses)))


def _outputs(model: ir.Model, sets: Sequence[list[Any]]) -> list[list[Any]]:
    session = OrtSession.from_model(model, num_threads=detect_cpu().cores)
    return [session.run(given) for given in sets]


class _Choosing:
    """Finds the mix that a policy asks for.

    Args:
        pass_: Gets the progress.
        policy: What is asked for.
        model: In float; not changed.
        units: Its layers.
        sets: Inputs to measure with.
        runs: How often there is time for it.
    """

    def __init__(
        self, pass_: MixPrecision, policy: PrecisionPolicy, model: ir.Model, units: Sequence[Unit],
        sets: Sequence[Any], runs: float,
    ) -> None:  # fmt: skip
        self._policy = policy
        self._units = units
        self._specs = specs_of(model.graph.inputs)
        self._kept = _kept(units, policy)
        allowed = [_allowed(unit, self._kept.get(unit.weight), policy) for unit in units]
        self._bound = Bound(policy, units, self._kept, weight_bytes(model))
        self._board = LayerBoard(model, units)
        self._search = Search(self._board, units, allowed, sets, pass_.progress, runs)
        self._metrics: dict[Choice, float] = {}

    def choose(self) -> Choice:
        """The form of each layer.

        Raises:
            PolicyError: The budget cannot be met.
            InputError: The metric gives no number.
        """
        policy = self._policy
        if policy.metric is not None or policy.max_error is not None:
            return self._smallest()
        found = self._search.within_bytes(self._bound.layer_bytes)
        if found is None:
            last = size_of(self._search.problem, steps(self._search.problem)[-1])
            if policy.max_bits is not None:
                least = self._bound.bits(last)
                reason = f"the smallest forms of its layers have {least:.4g} bits a weight"
            else:
                least, rest = last + self._bound.rest, self._bound.rest
                reason = f"the smallest that can be reached is {least} bytes, {rest} of them not in its layers"
            raise PolicyError(f"{policy.budget} cannot be met: {reason}", smallest=least)
        return found

    def error(self, choice: Choice) -> float:
        """The relative error of a mix, measured."""
        return self._search.error(choice)

    def outcome(self, choice: Choice, error: float) -> PolicyOutcome:
        """What was chosen, for the report.

        Args:
            choice: The form of each layer.
            error: Of the mixed model.
        """
        search = self._search
        rows = [
            _row(unit, form, offers, effects, self._kept.get(unit.weight))
            for unit, form, offers, effects in zip(self._units, choice, search.problem, search.effects, strict=True)
        ]
        layers = size_of(search.problem, choice)
        metric = None
        if self._policy.metric is not None:
            metric = self._metric(choice), self._metric(self._floats)
        return PolicyOutcome(
            self._policy.budget,
            layers + self._bound.rest,
            self._bound.model_bytes,
            self._bound.bits(layers),
            search.predicted(choice),
            error,
            metric,
            tuple(rows),
        )

    @property
    def _floats(self) -> Choice:
        return tuple(FLOAT for _ in self._units)

    def _smallest(self) -> Choice:
        policy = self._policy
        if policy.max_error is not None:
            bound = policy.max_error
            found = self._search.smallest(lambda choice: self._search.error(choice) <= bound)
            reached, what = self._search.error, "relative error"
        else:
            least = self._metric(self._floats) - (policy.max_loss or 0.0)
            found = self._search.smallest(lambda choice: self._metric(choice) >= least)
            reached, what = self._loss, "loss of the metric"
        if found is None:
            smallest = reached(steps(self._search.problem)[0])
            raise PolicyError(
                f"{policy.budget} cannot be met: with the forms that its layers may take, the smallest {what} is "
                f"{smallest:.3g}",
                smallest=smallest,
            )
        return found

    def _loss(self, choice: Choice) -> float:
        return self._metric(self._floats) - self._metric(choice)

    def _metric(self, choice: Choice) -> float:
        """What the user's metric gives for a mix."""
        if choice not in self._metrics:

            def run(*args: Any, **kwargs: Any) -> Any:
                results = self._board.run(bind(self._specs, args, kwargs), choice)
                return results[0] if len(results) == 1 else tuple(results)

            assert self._policy.metric is not None, "only asked for with a metric"
            value = self._policy.metric(run)
            try:
                self._metrics[choice] = float(value)
            except (TypeError, ValueError) as error:
                raise InputError(f"metric must give a number, and gave {value!r}") from error
            if self._metrics[choice] != self._metrics[choice]:
                raise InputError("metric must give a number, and gave NaN")
        return self._metrics[choice]


def _check_patterns(model: ir.Model, policy: PrecisionPolicy) -> None:
    """Refuse a pattern that fits nothing, before anything is done that takes long.

    Raises:
        InputError: There is one.
    """
    layers = [node for node in model.graph if is_op(node, *LAYERS)]
    names = frozenset().union(*map(names_of, layers))
    for pattern in policy.keep:
        if not fnmatch.filter(names, pattern):
            known = ", ".join(label(node) for node in layers[:5])
            raise InputError(f"keep: {pattern!r} fits no layer; there are {len(layers)}, such as {known}")


def _kept(units: Sequence[Unit], policy: PrecisionPolicy) -> dict[str, tuple[str, str]]:
    """By weight: the pattern that fixes its form, and the form."""
    found: dict[str, tuple[str, str]] = {}
    for pattern, form in policy.keep.items():
        for unit in (unit for unit in units if any(fnmatch.fnmatchcase(name, pattern) for name in unit.names)):
            if form not in unit.sizes:
                raise InputError(
                    f"keep: {unit.name!r} cannot be {form}; it can be {', '.join(unit.sizes)} (near misses say why)"
                )
            found.setdefault(unit.weight, (pattern, form))
    return found


def _allowed(unit: Unit, kept: tuple[str, str] | None, policy: PrecisionPolicy) -> list[str]:
    """The forms that a layer may take. One that can take none of those asked for stays in float."""
    if kept is not None:
        return [kept[1]]
    return [form for form in policy.forms if form in unit.sizes] or [FLOAT]


def _row(
    unit: Unit, form: str, offers: Sequence[Offer], effects: Mapping[str, float], kept: tuple[str, str] | None
) -> LayerChoice:
    now = next(offer for offer in offers if offer.form == form)
    smaller = [offer for offer in offers if offer.size < now.size]
    if kept is not None:
        reason = f"kept by {kept[0]!r}"
    elif not smaller:
        reason = "its smallest form"
    else:
        other = min(
            smaller, key=lambda offer: (max(0.0, offer.noise - now.noise) / (now.size - offer.size), offer.form)
        )
        reason = f"{other.form} would save {size(now.size - other.size)} more and lose {effects[other.form]:.1e}"
    node = unit.nodes[0]
    return LayerChoice(
        unit.name, node.op_type, form, reason, unit.elements, now.size, unit.sizes[FLOAT], dict(effects), origins(node)
    )


def _take(model: ir.Model, units: Sequence[Unit], choice: Sequence[str]) -> bool:
    """Put the nodes of each layer's form in its place."""
    editor = Editor(model)
    scope = Scope(model.graph, model.opset_imports.get("", 0))
    unused = unused_constants(scope)
    order = {node: number for number, node in enumerate(model.graph)}
    layers = sorted(
        (order[node], form, unit.slices[form][position])
        for unit, form in zip(units, choice, strict=True)
        if form != FLOAT
        for position, node in enumerate(unit.nodes)
    )
    known: dict[str | None, ir.Value] = {value.name: value for value in model.graph.inputs}
    known.update({value.name: value for node in model.graph for value in node.outputs if value.name})
    copiers: dict[str, Copier] = {}
    for _, form, layer in layers:
        copier = copiers.setdefault(form, Copier(model.graph, known, editor.fresh_name))
        copies = copier.copy(layer.after)
        node = layer.before
        for copy in copies[:-1]:
            inherit(copy, [node])
            model.graph.insert_before(node, copy)
        copies[-1].name = label(node)
        editor.substitute(node, copies[-1])
        known[layer.value] = copies[-1].outputs[0]
    drop_orphans(scope, unused)
    return bool(layers)
