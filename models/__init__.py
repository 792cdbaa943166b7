"""Real pretrained weights and reference architectures, for tests, examples and benchmarks. Never part of the wheel."""

from models.case import MissingWeights, ModelCase
from models.registry import load, names

__all__ = ["MissingWeights", "ModelCase", "load", "names"]
