"""What is compared with what: one contest for each precision, with the table and the drawing that show it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.contestants import OPENVINO, ORT, PEERS, TERSOR, TORCH
from benchmarks.results import Section

__all__ = ["BFLOAT16", "CONTESTS", "FLOAT32", "Contest"]


@dataclass(frozen=True)
class Contest:
    """A precision in which contestants compute.

    Attributes:
        precision: Its name.
        references: Contestants that compute in float32 all the same: their time is shown, and not compared with ours.
        peers: Those that compute in it.
        baselines: Those of the peers of which the faster one is what we compare ourselves with.
        speed: The table.
        chart: The drawing, beside RESULTS.md.
    """

    precision: str
    references: tuple[str, ...]
    peers: tuple[str, ...]
    baselines: tuple[str, ...]
    speed: Section
    chart: str

    @property
    def contestants(self) -> tuple[str, ...]:
        """Everyone, in the order of the table."""
        return (*self.references, *self.peers, TERSOR)


def _speed(title: str, references: tuple[str, ...], peers: tuple[str, ...], marker: str) -> Section:
    columns = (
        "model",
        *(f"{name} float32 ms" for name in references),
        *(f"{name} ms" for name in (*peers, TERSOR)),
        *(f"over {name}" for name in peers),
        "over the best",
        "largest error",
        *(("bound",) if references else ()),
    )
    return Section(
        title,
        columns,
        texts=frozenset({"model", "largest error"}),
        begin=f"<!-- begin: {marker}, written by make bench -->",
        end=f"<!-- end of the {marker} -->",
    )


FLOAT32 = Contest(
    "float32", (), PEERS, (ORT, OPENVINO), _speed("Speed beside three peers", (), PEERS, "speed"), "speed.svg"
)
BFLOAT16 = Contest(
    "bfloat16",
    (ORT,),  # it has no kernels for bfloat16 on the CPU
    (OPENVINO, TORCH),
    (OPENVINO,),
    _speed("Speed in bfloat16 beside two peers", (ORT,), (OPENVINO, TORCH), "speed in bfloat16"),
    "speed-bfloat16.svg",
)
CONTESTS = {contest.precision: contest for contest in (FLOAT32, BFLOAT16)}
