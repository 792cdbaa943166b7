"""RNN, GRU, LSTM, LinearAttention: directions, lengths, peepholes, activations; held against ONNX Runtime."""

import numpy as np
import onnx
import pytest

from optimizer.errors import UnsupportedError
from tests.backends.emitted import Array, agrees, normal
from tests.backends.running import check, compiled, parse

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
T, B, I, H = 4, 3, 5, 6  # noqa: E741  # the letters of the emitter


def model(
    op: str, attributes: str = "", directions: int = 1, more: str = "", given: dict[str, Array] | None = None
) -> onnx.ModelProto:
    """All outputs of a recurrent node; `more` names its inputs behind the bias."""
    g = GATES[op]
    state = f", float[{directions},{B},{H}] c" if op == "LSTM" else ""
    names = "y, h, c" if op == "LSTM" else "y, h"
    direction = ', direction="bidirectional"' if directions == 2 else ""
    return parse(
        f"g (float[{T},{B},{I}] x) => (float[{T},{directions},{B},{H}] y, float[{directions},{B},{H}] h{state})"
        f" {{ {names} = {op}<hidden_size={H}{direction}{attributes}>(x, w, r, b{more}) }}",
        {
            "w": normal(directions, g * H, I),
            "r": normal(directions, g * H, H),
            "b": normal(directions, 2 * g * H),
            **(given or {}),
        },
        opset=22,
    )


@pytest.mark.parametrize("op", list(GATES))
@pytest.mark.parametrize("directions", [1, 2])
def test_sequences_end_where_they_are_said_to(op: str, directions: int) -> None:
    lengths = np.array([2, 4, 1], np.int32)
    check(model(op, directions=directions, more=", n", given={"n": lengths}), [normal(T, B, I)])


@pytest.mark.parametrize("op", list(GATES))
def test_backwards_from_a_given_state(op: str) -> None:
    states = {"h0": normal(1, B, H)} | ({"c0": normal(1, B, H)} if op == "LSTM" else {})
    names = ", , " + ", ".join(states)
    check(model(op, attributes=', direction="reverse"', more=names, given=states), [normal(T, B, I)])


@pytest.mark.parametrize("reset_after", [0, 1])
def test_the_reset_gate_before_and_after_the_product(reset_after: int) -> None:
    check(model("GRU", attributes=f", linear_before_reset={reset_after}"), [normal(T, B, I)])


@pytest.mark.parametrize("coupled", [0, 1])
def test_peepholes_and_coupled_gates(coupled: int) -> None:
    # ONNX Runtime gives the coupled input gate no peephole of its own: compare without.
    weights = {} if coupled else {"p": normal(1, 3 * H)}
    more = "" if coupled else ", , , , p"
    check(model("LSTM", attributes=f", input_forget={coupled}", more=more, given=weights), [normal(T, B, I)])


def test_other_activations_and_clipping() -> None:
    attributes = ', activations=["HardSigmoid","Elu","Softsign"], activation_alpha=[0.3,0.5], clip=1.5'
    check(model("LSTM", attributes=attributes), [normal(T, B, I)])


def test_a_batch_in_front() -> None:
    g = GATES["LSTM"]
    text = (
        f"g (float[{B},{T},{I}] x) => (float[{B},{T},1,{H}] y, float[{B},1,{H}] h)"
        f" {{ y, h = LSTM<hidden_size={H}, layout=1>(x, w, r) }}"
    )
    agrees(parse(text, {"w": normal(1, g * H, I), "r": normal(1, g * H, H)}), [normal(B, T, I)])


def test_a_long_or_symbolic_sequence_is_refused() -> None:
    weights = {"w": normal(1, H, I), "r": normal(1, H, H)}
    for length in ("t", "1000"):
        text = f"g (float[{length},{B},{I}] x) => (float[{length},1,{B},{H}] y) {{ y = RNN<hidden_size={H}>(x, w, r) }}"
        with pytest.raises(UnsupportedError, match="1 to 256 are unrolled"):
            compiled(parse(text, weights))


def test_linear_attention_reads_shared_heads() -> None:
    text = (
        "g (float[2,3,32] q, float[2,3,16] k, float[2,3,8] v, float[2,2,8,4] s, float[2,3,2] d, float[2,3,1] b)"
        " => (float[2,3,16] y, float[2,2,8,4] n)"
        " { y, n = LinearAttention<q_num_heads=4, kv_num_heads=2>(q, k, v, s, d, b) }"
    )
    shapes = [(2, 3, 32), (2, 3, 16), (2, 3, 8), (2, 2, 8, 4), (2, 3, 2), (2, 3, 1)]
    agrees(parse(text, opset=27), [normal(*s) * 0.5 for s in shapes], atol=1e-5)


def test_a_causal_convolution_continues_its_past() -> None:
    text = (
        "g (float[2,3,n] x, float[2,3,3] p) => (float[2,3,n] y, float[2,3,3] s)"
        ' { y, s = CausalConvWithState<activation="silu">(x, w, b, p) }'
    )
    agrees(parse(text, {"w": normal(3, 1, 4), "b": normal(3)}, opset=27), [normal(2, 3, 2), normal(2, 3, 3)])
