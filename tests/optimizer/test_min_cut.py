"""The cheapest division of a network, beside all divisions."""

from __future__ import annotations

import gc
import itertools
import time

from hypothesis import given
from hypothesis import strategies as st

from optimizer.ir.min_cut import SINK, SOURCE, UNLIMITED, Network

_NODES = 6
_EDGES = st.lists(
    st.tuples(st.integers(0, _NODES - 1), st.integers(0, _NODES - 1), st.sampled_from([1, 2, UNLIMITED])), max_size=14
)


def sink_side(edges: list[tuple[int, int, int]], nodes: int = _NODES) -> set[int]:
    network = Network()
    for _ in range(nodes - 2):
        network.node()
    for edge in edges:
        network.edge(*edge)
    return network.sink_side()


def cost(edges: list[tuple[int, int, int]], side: set[int]) -> int:
    return sum(capacity for start, end, capacity in edges if start not in side and end in side)


@given(_EDGES)
def test_no_division_is_cheaper_and_none_as_cheap_leaves_the_sink_less(
    edges: list[tuple[int, int, int]],
) -> None:
    found = sink_side(edges)
    assert SINK in found
    others = [
        {SINK, *chosen}
        for count in range(_NODES - 1)
        for chosen in itertools.combinations(set(range(_NODES)) - {SOURCE, SINK}, count)
    ]
    cheapest = min(cost(edges, side) for side in others)
    if cheapest >= UNLIMITED:  # the source is tied to the sink: no division is any good
        return
    assert cost(edges, found) == cheapest
    assert all(found <= side for side in others if cost(edges, side) == cheapest)


def test_time_grows_linearly() -> None:
    """Islands in a long chain, of which each needs a cut."""

    def seconds(islands: int) -> float:
        edges = []
        for i in range(islands):
            node = 2 + 3 * i
            for one, other in ((SOURCE, node), (node, node + 1), (node + 1, node + 2), (node + 2, SINK)):
                edges += [(one, other, 1), (other, one, 1)]
        gc.collect()  # Not what earlier tests have left.
        start = time.process_time()
        sink_side(edges, 2 + 3 * islands)
        return time.process_time() - start

    seconds(100)
    assert seconds(16_000) < 12 * max(seconds(4_000), 0.04)
