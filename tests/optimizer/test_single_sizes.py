"""Sizes of one in the example of a module whose axes are dynamic: they are not taken for the only size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.export import Dim

from optimizer import optimize
from optimizer.errors import InputError, UnsupportedError
from optimizer.frontends import load_model
from optimizer.frontends.single_sizes import examples


class Positions(torch.nn.Module):
    """A sum that the exporter takes for one of [1, tokens, D] where the batch of the example is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(32, 8)
        self.places = torch.nn.Embedding(16, 8)
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1]).unsqueeze(0)
        hidden: torch.Tensor = self.table(tokens) + self.places(places)
        mixed: torch.Tensor = self.linear(hidden.reshape(-1, 8))
        return hidden + mixed.reshape(hidden.shape)


class Cached(torch.nn.Module):
    """A mask as long as the cache and the new tokens together: two tokens do not fit a mask for one."""

    def forward(self, x: torch.Tensor, cache: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([cache, x], dim=1) * mask


X = torch.zeros(1, 3)


def shapes(found: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[list[tuple[int, ...]]]:
    return [[tuple(x.shape) for x in (*args, *kwargs.values())] for args, kwargs in found]


def grown(dynamic: object, *args: torch.Tensor, **kwargs: torch.Tensor) -> list[list[tuple[int, ...]]]:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            return x

    return shapes(list(examples(Module(), args, kwargs, dynamic)))


def test_a_model_exported_with_one_sequence_computes_several() -> None:
    torch.manual_seed(0)
    module = Positions().eval()
    example = torch.zeros(1, 6, dtype=torch.int64)
    dynamic = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    compiled = optimize(module, example_inputs=(example,), dynamic_shapes=dynamic, fallback="error", cache=False)
    for sizes in ((1, 6), (3, 5), (2, 1), (1, 1), (4, 4)):
        tokens = torch.randint(0, 16, sizes)
        with torch.no_grad():
            expected = module(tokens).numpy()
        np.testing.assert_allclose(compiled(tokens.numpy()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "dynamic",
    [
        ({0: Dim.DYNAMIC},),
        {"x": {0: Dim.AUTO}},
        ([Dim("batch"), None],),
        ({0: "batch"},),
        ({0: Dim.DYNAMIC(max=8)},),
    ],
    ids=["hint", "by name", "each axis", "string", "bounded"],
)
def test_a_dynamic_axis_of_one_is_tried_with_two_first(dynamic: object) -> None:
    assert grown(dynamic, X) == [[(2, 3)], [(1, 3)]]


@pytest.mark.parametrize(
    "dynamic",
    [
        None,
        (None,),
        ({1: Dim.DYNAMIC},),
        ({0: Dim.STATIC},),
        ({0: 1},),
        ({0: Dim("batch", max=1)},),
        ({0: Dim("batch", min=3)},),
        ({0: Dim.DYNAMIC(max=1)},),
        ({0: 2 * Dim("half")},),
    ],
    ids=["nothing", "none", "not of one", "static", "number", "at most one", "at least three", "bounded", "derived"],
)
def test_an_example_without_such_an_axis_stays_as_it_is(dynamic: object) -> None:
    assert grown(dynamic, X) == [[(1, 3)]]


def test_the_batch_alone_is_tried_next() -> None:
    dynamic = {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "y": {0: Dim.DYNAMIC}}
    x, y = torch.zeros(1, 1), torch.zeros(1, 4)
    assert grown(dynamic, x, y=y) == [[(2, 2), (2, 4)], [(2, 1), (2, 4)], [(1, 1), (1, 4)]]


def test_tensors_inside_containers_grow_too() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: list[torch.Tensor], y: dict[str, torch.Tensor]) -> torch.Tensor:
            return x[0] + y["a"]

    dynamic = ([{0: Dim.DYNAMIC}], {"a": {0: Dim.DYNAMIC}})
    first, *_ = examples(Module(), ([X], {"a": X, "b": X}), {}, dynamic)
    (x,), y = first[0]
    assert [tuple(t.shape) for t in (x, y["a"], y["b"])] == [(2, 3), (2, 3), (1, 3)]


def test_arguments_that_do_not_fit_the_module_are_left_to_the_exporter() -> None:
    assert grown(({0: Dim.DYNAMIC},), X, X, X) == [[(1, 3)] * 3]
    with pytest.raises(UnsupportedError, match="PyTorch cannot export this model"):
        load_model(Cached(), example_inputs=(X,), dynamic_shapes=({0: Dim.DYNAMIC},))


def test_an_axis_that_the_example_does_not_have_is_named() -> None:
    with pytest.raises(InputError, match=r"dynamic_shapes names axis 5 of an argument of shape \(1, 8\)"):
        load_model(torch.nn.ReLU(), example_inputs=(torch.ones(1, 8),), dynamic_shapes=({5: Dim("n")},))


def test_sizes_that_depend_on_one_another_are_exported_as_they_were_given() -> None:
    example = (torch.zeros(1, 1, 4), torch.zeros(1, 5, 4), torch.zeros(1, 6, 1))
    dynamic = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC})
    graph = load_model(Cached(), example_inputs=example, dynamic_shapes=dynamic).graph
    assert all(not isinstance(value.shape[0], int) for value in graph.inputs if value.shape is not None)
