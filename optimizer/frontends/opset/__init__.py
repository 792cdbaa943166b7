"""Bring a model of any default-domain opset from 7 on to the canonical one, in place, without touching its weights."""

from optimizer.frontends.opset.convert import CANONICAL_OPSET, NEWEST_OPSET, OLDEST_OPSET, to_canonical_opset

__all__ = ["CANONICAL_OPSET", "NEWEST_OPSET", "OLDEST_OPSET", "to_canonical_opset"]
