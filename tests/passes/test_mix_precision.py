"""Layers get the bits that pay under a budget; what they cost is measured, and so is the mix."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.calibration import Samples
from optimizer.errors import InputError, PolicyError
from optimizer.ir.weights import weight_bytes
from optimizer.layer_board import FLOAT, LayerBoard, find_units
from optimizer.pass_manager import PassManager
from optimizer.policy_outcome import PolicyOutcome
from optimizer.precision_policy import PrecisionPolicy
from optimizer.reference import run_reference
from passes.mix_precision import MixPrecision
from passes.quantization import policy_amount
from passes.quantization.blocks import Floats
from passes.quantization.policy_bound import Bound
from passes.quantization.policy_effects import step_of
from passes.quantization.policy_forms import in_form
from passes.quantization.policy_search import Search, relative_error
from passes.quantize_int4 import QuantizeInt4
from tests.passes.int4_graphs import model_of

RNG = np.random.default_rng(0)
FORMS = ("float32", "int8", "int8-dynamic", "int4-16", "int4")
WEIGHTS: dict[str, Floats] = {
    "a": (RNG.standard_normal((64, 96)) / 8).astype(np.float32),
    "b": (RNG.standard_normal((96, 96)) / 10).astype(np.float32),
    "c": (RNG.standard_normal((96, 16)) / 10).astype(np.float32),
    "s": np.ones(64, np.float32),
}
NETWORK = """g (float[N,64] x) => (float[N,16] y) {
    n = LayerNormalization(x, s)  h = MatMul(n, a)  r = Relu(h)  k = MatMul(r, b)  t = Tanh(k)  y = MatMul(t, c) }"""
SETS = [RNG.standard_normal((64, 64)).astype(np.float32) for _ in range(9)]


def network() -> ir.Model:
    return model_of(NETWORK, WEIGHTS)


def mixed(model: ir.Model, **budget: Any) -> PolicyOutcome:
    """Change a model in place."""
    outcomes: list[PolicyOutcome] = []
    policy = PrecisionPolicy(**{"forms": FORMS, **budget})
    samples = Samples.of(model.graph, SETS)
    PassManager([MixPrecision(policy=policy, samples=samples, chosen=outcomes.append)]).run(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return outcomes[0]


def forms_of(outcome: PolicyOutcome) -> dict[str, str]:
    return {row.node: row.form for row in outcome.layers}


def error_of(model: ir.Model, sets: Any = None) -> float:
    before = network()
    chosen = SETS[::4] if sets is None else sets
    return relative_error([run_reference(model, [x]) for x in chosen], [run_reference(before, [x]) for x in chosen])


@pytest.mark.parametrize("kernels", ["tersor", "onnxruntime"])
def test_a_board_computes_what_the_models_do(kernels: str) -> None:
    model = network()
    samples = Samples.of(model.graph, SETS)
    policy = PrecisionPolicy(max_bits=5, forms=FORMS)
    forms = {form: in_form(model, form, policy, kernels, samples, None)[0] for form in FORMS if form != FLOAT}
    units, alone = find_units(model, forms)
    assert not alone and [unit.weight for unit in units] == ["a", "b", "c"]
    board = LayerBoard(model, units)
    for form, other in forms.items():
        chosen = [form if form in unit.slices else FLOAT for unit in units]
        (found,), (expected,) = board.run([SETS[0]], chosen), run_reference(other, [SETS[0]])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    (found,), (expected,) = board.run([SETS[0]]), run_reference(model, [SETS[0]])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_size_is_kept_to_and_counted_to_the_byte() -> None:
    model = network()
    bound = weight_bytes(model) // 6
    outcome = mixed(model, max_size=bound, method="rtn")  # which learns nothing: it is the model that was measured
    assert weight_bytes(model) == outcome.size <= bound
    assert outcome.size > 0.8 * bound, "what is left could have made a layer better"
    assert outcome.error == pytest.approx(error_of(model), rel=1e-3)
    assert outcome.error == pytest.approx(outcome.predicted, rel=0.5)
    assert outcome.size_before == weight_bytes(network())


def test_bits_are_those_of_the_layers_that_are_chosen_for() -> None:
    model = network()
    outcome = mixed(model, max_bits=6, keep={"b": "float32"})
    free = [row for row in outcome.layers if row.form != FLOAT]
    assert {row.node for row in outcome.layers} - {row.node for row in free} == {outcome.layers[1].node}
    assert outcome.bits == 8 * sum(row.size for row in free) / sum(row.elements for row in free) <= 6
    assert outcome.layers[1].reason == "kept by 'b'"


def test_the_mix_loses_less_than_one_form_of_its_size() -> None:
    uniform = mixed(network(), max_bits=32, forms=("int4-16",))
    outcome = mixed(network(), max_bits=uniform.bits)
    assert outcome.bits <= uniform.bits and outcome.error <= uniform.error


def test_an_error_is_kept_to_with_few_bytes() -> None:
    model = network()
    outcome = mixed(model, max_error=0.03)
    assert outcome.error <= 0.03 * 1.001 and outcome.error == pytest.approx(error_of(model), rel=1e-3)
    assert outcome.size < mixed(network(), max_error=0.009).size < outcome.size_before


def test_a_metric_is_kept_to() -> None:
    x = SETS[0]
    (right,) = run_reference(network(), [x])

    def agreement(run: Any) -> float:
        by_position, by_name = run(x), run(x=x)
        np.testing.assert_array_equal(by_position, by_name)
        return float((by_position.argmax(1) == right.argmax(1)).mean())

    model = network()
    outcome = mixed(model, metric=agreement, max_loss=0.05)
    assert outcome.metric is not None and outcome.metric[1] == 1 and outcome.metric[0] >= 0.95
    (found,) = run_reference(model, [x])
    assert (found.argmax(1) == right.argmax(1)).mean() == pytest.approx(outcome.metric[0], abs=0.02)
    assert outcome.size < outcome.size_before / 3
    assert "metric" in str(outcome)


@pytest.mark.parametrize("value", ["much", None, float("nan")])
def test_a_metric_that_is_no_number(value: Any) -> None:
    with pytest.raises(InputError, match="metric must give a number"):
        mixed(network(), metric=lambda run: value, max_loss=0)


def test_budgets_that_cannot_be_met_name_the_smallest_that_can() -> None:
    with pytest.raises(PolicyError, match=r"max_size=1000 cannot be met: the smallest .* is \d+ bytes") as caught:
        mixed(network(), max_size=1000)
    assert mixed(network(), max_size=int(caught.value.smallest)).size == caught.value.smallest
    with pytest.raises(PolicyError, match="max_size"):
        mixed(network(), max_size=int(caught.value.smallest) - 1)
    with pytest.raises(PolicyError, match=r"max_bits=2 cannot be met: .* bits a weight") as caught:
        mixed(network(), max_bits=2)
    assert mixed(network(), max_bits=caught.value.smallest * 1.0001).bits <= caught.value.smallest * 1.0001
    with pytest.raises(PolicyError, match=r"max_error=0.0001 .* smallest relative error is") as caught:
        mixed(network(), max_error=1e-4, forms=("int8", "int4"))
    assert mixed(network(), max_error=caught.value.smallest * 1.0001, forms=("int8", "int4")).error > 1e-4
    values = itertools.count()
    with pytest.raises(PolicyError, match="smallest loss of the metric is 1"):
        mixed(network(), metric=lambda run: -float(next(values)), max_loss=0, forms=("int4",))


def test_layers_can_be_kept() -> None:
    outcome = mixed(network(), max_bits=6, keep={"h": "int8", "*": "float32"})
    assert [row.form for row in outcome.layers] == ["int8", FLOAT, FLOAT]
    with pytest.raises(InputError, match="'z' fits no layer; there are 3"):
        mixed(network(), max_bits=5, keep={"z": "float32"})
    table = model_of("g (int64[N] x) => (float[N,16] y) { y = Gather(t, x) }", {"t": RNG.random((512, 16), np.float32)})
    policy = PrecisionPolicy(max_bits=8, forms=("int8",), keep={"y": "int8-dynamic"})
    with pytest.raises(InputError, match=r"cannot be int8-dynamic; it can be float32, int8"):
        MixPrecision(policy=policy, samples=Samples.of(table.graph, [np.arange(9)]))(table)


def test_layers_that_read_one_weight_take_one_form() -> None:
    text = """g (float[N,64] x) => (float[N,64] y) {
        h = MatMul(x, w)  r = Tanh(h)  k = MatMul(r, w)  t = Tanh(k)  y = MatMul(t, v) }"""
    weights = {name: RNG.standard_normal((64, 64)).astype(np.float32) / 8 for name in "wv"}
    model = model_of(text, weights)
    outcome = mixed(model, max_bits=5)
    assert len(outcome.layers) == 2 and weight_bytes(model) == outcome.size


def test_a_weight_that_something_else_reads_stays() -> None:
    text = (
        "g (float[N,64] x) => (float[N,64] y) { h = MatMul(x, w)  m = ReduceMax(w)  a = Add(h, m)  y = MatMul(a, v) }"
    )
    model = model_of(text, {name: RNG.standard_normal((64, 64)).astype(np.float32) for name in "wv"})
    policy = PrecisionPolicy(max_bits=9, forms=("float32", "int8-dynamic"))
    result = PassManager([MixPrecision(policy=policy, samples=Samples.of(model.graph, SETS))]).run(model)
    assert [miss.reason.split(" by")[0] for miss in result.near_misses] == ["its weight 'w' is also read"]
    assert weight_bytes(model) < 64 * 64 * 4 * 1.5


def test_the_same_again() -> None:
    first, second = network(), network()
    assert mixed(first, max_bits=6).to_dict() == mixed(second, max_bits=6).to_dict()
    assert ir.to_proto(first).SerializeToString(deterministic=True) == ir.to_proto(second).SerializeToString(
        deterministic=True
    )


def test_a_second_run_changes_nothing() -> None:
    model = network()
    mixed(model, max_bits=5)
    policy = PrecisionPolicy(max_bits=5, forms=FORMS)
    assert not PassManager([MixPrecision(policy=policy, samples=Samples.of(model.graph, SETS))]).run(model).modified


def test_progress_and_interruption() -> None:
    told: list[tuple[int, int, str]] = []

    def tell(done: int, total: int, name: str) -> None:
        told.append((done, total, name))
        if name.endswith("in int4"):
            raise KeyboardInterrupt

    model = network()
    policy = PrecisionPolicy(max_bits=5, forms=FORMS)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(KeyboardInterrupt):
        MixPrecision(policy=policy, samples=Samples.of(model.graph, SETS), progress=tell)(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert told[-1][:2] == (4, 12) and any("as int4-16" in name for _, _, name in told)


def test_what_is_missing_is_asked_for() -> None:
    model = network()
    with pytest.raises(InputError, match="needs a policy"):
        MixPrecision()(model)
    with pytest.raises(InputError, match="needs calibration data"):
        MixPrecision(policy=PrecisionPolicy(max_bits=5))(model)


def test_effects_follow_from_one_run_for_each_layer() -> None:
    model, policy = network(), PrecisionPolicy(max_bits=5, forms=FORMS, method="rtn")
    samples = Samples.of(model.graph, SETS)
    forms = {form: in_form(model, form, policy, "tersor", samples, None)[0] for form in FORMS[1:]}
    units, _ = find_units(model, forms)
    board, allowed, sets = LayerBoard(model, units), [list(unit.sizes) for unit in units], [[x] for x in SETS]
    counts = []
    right = Search(board, units, allowed, sets, None).effects
    found = Search(board, units, allowed, sets, lambda done, total, _: counts.append((done, total)), runs=1).effects
    assert counts == [(index + 1, 7) for index in range(7)]  # three layers, and four forms of all
    for estimated, exact in zip(found, right, strict=True):
        assert estimated.keys() == exact.keys()
        assert estimated["int4"] == exact["int4"]  # it has the largest steps
        assert all(0.6 * exact[form] < estimated[form] < 1.7 * exact[form] for form in FORMS[1:])


def test_steps_that_are_not_known_are_no_reason_to_guess() -> None:
    model, policy = network(), PrecisionPolicy(max_bits=5, forms=("int4-16",), method="nf4")
    form = in_form(model, "int4-16", policy, "tersor", Samples.of(model.graph, SETS), None)[0]
    units, _ = find_units(model, {"int4-16": form})
    assert all(math.isnan(step_of(unit, "int4-16")) for unit in units)
    told: list[str] = []
    Search(LayerBoard(model, units), units, [["int4-16"]] * 3, [[SETS[0]]], lambda *row: told.append(row[2]), runs=0)
    assert told == [f"{unit.name} in int4-16" for unit in units]


def test_codes_of_a_large_model_are_made_as_the_policy_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_amount, "_MOST_FLOPS", 1.0)
    models = {method: network() for method in ("rtn", "gptq")}
    outcomes = {m: mixed(model, max_bits=4.7, method=m, forms=FORMS[2:]) for m, model in models.items()}
    assert outcomes["gptq"].error < outcomes["rtn"].error
    errors = {method: error_of(model, SETS[:1]) for method, model in models.items()}
    assert errors["rtn"] == pytest.approx(outcomes["rtn"].error, rel=1e-3)
    assert errors["gptq"] < outcomes["gptq"].error  # its other weights were rounded to nearest for the search


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("count", [7, 9])
def test_codes_of_the_mix_are_learned_from_all_sets(monkeypatch: pytest.MonkeyPatch, count: int, large: bool) -> None:
    if large:
        monkeypatch.setattr(policy_amount, "_MOST_FLOPS", 1.0)
    model, expected = network(), network()
    samples = Samples.of(model.graph, SETS[:count])
    outcomes: list[PolicyOutcome] = []
    policy = PrecisionPolicy(max_bits=4.4, forms=("int4-64",), method="gptq")
    MixPrecision(policy=policy, samples=samples, chosen=outcomes.append)(model)
    QuantizeInt4(method="gptq", scale_type="float16", op_types_to_quantize="MatMul+Gemm+Gather", samples=samples)(
        expected
    )
    for x in SETS[:3]:
        np.testing.assert_array_equal(run_reference(model, [x])[0], run_reference(expected, [x])[0])
    step = 1 if count == 7 else 9 if large else 4  # every so many sets are for measuring
    few = samples if count == 7 else Samples([[x] for index, x in enumerate(SETS) if index % step])
    told = in_form(network(), "int4-64", policy, "tersor", few, None)[0]
    measured = SETS[:1] if large else SETS[:count:step]
    assert outcomes[0].error == pytest.approx(error_of(told, measured), rel=1e-3)


@pytest.mark.parametrize("budget", [4.7, 5.2, 6.5])
def test_a_mix_of_a_large_model_loses_no_more_than_one_form_made_the_same_way(
    monkeypatch: pytest.MonkeyPatch, budget: float
) -> None:
    """What GPTQ loses is known to the search; by what rounding to nearest loses, eight bits would seem worth more."""
    monkeypatch.setattr(policy_amount, "_MOST_FLOPS", 1.0)
    forms = ("int8-dynamic", "int4-16", "int4")
    outcome = mixed(network(), max_bits=budget, method="gptq", forms=forms)
    fullest = "int4-16" if budget > 5.2 else "int4"  # 4 + (16 + 4) / 16 = 5.25 bits
    uniform = mixed(network(), max_bits=budget, method="gptq", forms=(fullest,))
    assert outcome.bits <= budget
    assert outcome.error <= uniform.error * (1 + 1e-6)


def test_the_form_that_a_mix_has_most_of() -> None:
    model = network()
    samples = Samples.of(model.graph, SETS)
    policy = PrecisionPolicy(max_bits=4.6, forms=("int8-dynamic", "int4-16", "int4-64", "int4"), method="rtn")
    units, _ = find_units(model, {f: in_form(model, f, policy, "tersor", samples, None)[0] for f in policy.forms})

    def fullest(**budget: Any) -> str | None:
        asked = PrecisionPolicy(**{"forms": policy.forms, **budget})
        return Bound(asked, units, {}, weight_bytes(model)).fullest_four_bits()

    assert fullest(max_bits=6.0) == "int4-16"
    assert fullest(max_bits=5.0) == "int4-64"
    assert fullest(max_bits=2.0) == "int4"
    assert fullest(max_size=weight_bytes(model)) == "int4-16"
    assert fullest(max_bits=6.0, forms=("float32", "int8-dynamic")) is None
    kept = Bound(PrecisionPolicy(max_bits=5.0, keep={"*": "int4-16"}), units, {"a": ("a", "int4-16")}, 1 << 20)
    assert kept.bits(kept.layer_bytes) == pytest.approx(5.0, abs=1e-3)
