"""The cheapest way to divide what hangs together into two sides.

Largest flow by blocking flows (Dinic, Algorithm for Solution of a Problem of Maximum Flow in Networks with Power
Estimation, 1970). The graphs here have short paths, so a few blocking flows are enough and the time is linear.
"""

from __future__ import annotations

from collections import deque

__all__ = ["SINK", "SOURCE", "UNLIMITED", "Network"]

SOURCE, SINK = 0, 1
UNLIMITED = 2**62


class Network:
    """A graph with capacities. The nodes `SOURCE` and `SINK` are there from the start."""

    def __init__(self) -> None:
        self._edges_of: list[list[int]] = [[], []]
        self._end: list[int] = []
        self._left: list[int] = []

    def node(self) -> int:
        """A new node."""
        self._edges_of.append([])
        return len(self._edges_of) - 1

    def edge(self, start: int, end: int, capacity: int) -> None:
        """What it costs when `start` is on the side of the source and `end` on that of the sink."""
        if start in (end, SINK) or end == SOURCE:
            return  # it is never cut
        for node, other, room in ((start, end, capacity), (end, start, 0)):
            self._edges_of[node].append(len(self._end))
            self._end.append(other)
            self._left.append(room)

    def sink_side(self) -> set[int]:
        """The fewest nodes that are on the side of the sink in a cheapest division."""
        while (levels := self._levels()) is not None:
            self._block(levels)
        side, waiting = {SINK}, [SINK]
        while waiting:
            for edge in self._edges_of[waiting.pop()]:
                other = self._end[edge]
                if self._left[edge ^ 1] and other not in side:
                    side.add(other)
                    waiting.append(other)
        return side

    def _levels(self) -> list[int] | None:
        """How many edges with room each node is from the source; `None` when the sink cannot be reached."""
        levels = [-1] * len(self._edges_of)
        levels[SOURCE] = 0
        waiting = deque([SOURCE])
        while waiting:
            node = waiting.popleft()
            for edge in self._edges_of[node]:
                other = self._end[edge]
                if self._left[edge] and levels[other] < 0:
                    levels[other] = levels[node] + 1
                    waiting.append(other)
        return levels if levels[SINK] >= 0 else None

    def _block(self, levels: list[int]) -> None:
        """Fill shortest paths until each has an edge without room."""
        tried = [0] * len(levels)
        path: list[int] = []
        node = SOURCE
        while True:
            if node == SINK:
                node = self._fill(path)
                continue
            edge = self._onward(node, levels, tried)
            if edge is not None:
                path.append(edge)
                node = self._end[edge]
            elif path:
                levels[node] = -1
                node = self._end[path.pop() ^ 1]
            else:
                return

    def _onward(self, node: int, levels: list[int], tried: list[int]) -> int | None:
        edges = self._edges_of[node]
        while tried[node] < len(edges):
            edge = edges[tried[node]]
            if self._left[edge] and levels[self._end[edge]] == levels[node] + 1:
                return edge
            tried[node] += 1
        return None

    def _fill(self, path: list[int]) -> int:
        """Send through a path what it takes; the node from which to go on, to which `path` is cut back."""
        amount = min(self._left[edge] for edge in path)
        for edge in path:
            self._left[edge] -= amount
            self._left[edge ^ 1] += amount
        first = next(i for i, edge in enumerate(path) if not self._left[edge])
        node = self._end[path[first] ^ 1]
        del path[first:]
        return node
