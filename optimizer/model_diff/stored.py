"""The facts about a model as bytes, for an artifact: without the weights, which are only named, typed and hashed."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import asdict
from typing import Any

from optimizer.errors import ArtifactError
from optimizer.model_diff.facts import Node, Read, Side, Written
from optimizer.model_diff.weights import Weight

__all__ = ["pack_side", "unpack_side"]


def pack_side(side: Side) -> bytes:
    """Compressed JSON; the same facts give the same bytes."""
    data = {
        "title": side.title,
        "nodes": [asdict(node) for node in side.nodes],
        "weights": [[weight.key, weight.kind, weight.digest()] for weight in side.weights.values()],
        "inputs": side.inputs,
        "outputs": side.outputs,
        "output_sources": side.output_sources,
        "opsets": side.opsets,
        "constants": side.constants,
        "has_provenance": side.has_provenance,
        "removed_by": dict(sorted(side.removed_by.items())),
    }
    return gzip.compress(json.dumps(data, separators=(",", ":")).encode(), mtime=0)


def unpack_side(data: bytes) -> Side:
    """The inverse of `pack_side`.

    Raises:
        ArtifactError: The data is damaged.
    """
    try:
        facts = json.loads(gzip.decompress(data))
        return Side(
            title=facts["title"],
            nodes=[_node(node) for node in facts["nodes"]],
            weights={key: Weight(key, kind, None, digest) for key, kind, digest in facts["weights"]},
            inputs=facts["inputs"],
            outputs=facts["outputs"],
            output_sources=[None if place is None else (place[0], place[1]) for place in facts["output_sources"]],
            opsets=facts["opsets"],
            constants=facts["constants"],
            has_provenance=facts["has_provenance"],
            removed_by=facts["removed_by"],
        )
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, IndexError) as error:
        raise ArtifactError(f"the original graph is damaged ({error}): save the model again") from error


def _node(facts: dict[str, Any]) -> Node:
    tuples = {key: tuple(facts[key]) for key in ("scope", "bodies", "origins", "makers")}
    reads = tuple(Read(**read) for read in facts["inputs"])
    written = tuple(
        Written(output["value"], output["dtype"], None if output["shape"] is None else tuple(output["shape"]))
        for output in facts["outputs"]
    )
    return Node(**{**facts, **tuples, "inputs": reads, "outputs": written})
