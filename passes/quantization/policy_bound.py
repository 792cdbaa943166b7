"""What a bound of bytes leaves to the layers that a `PrecisionPolicy` chooses for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optimizer.layer_board import FLOAT, Unit
from optimizer.precision_policy import PrecisionPolicy, block_size

__all__ = ["Bound"]


@dataclass(frozen=True)
class Bound:
    """The bytes of a model, as a policy counts them.

    Attributes:
        policy: What is asked for.
        units: The layers.
        kept: By weight of a layer whose form is fixed: the pattern that fixes it, and the form.
        model_bytes: Of all constants of the model, in float.
    """

    policy: PrecisionPolicy
    units: Sequence[Unit]
    kept: Mapping[str, tuple[str, str]]
    model_bytes: int

    @property
    def rest(self) -> int:
        """Bytes of what is in no layer."""
        return self.model_bytes - sum(unit.sizes[FLOAT] for unit in self.units)

    @property
    def free_elements(self) -> int:
        """Of the weights that the policy chooses for."""
        return sum(unit.elements for unit in self.units if unit.weight not in self.kept)

    @property
    def kept_bytes(self) -> int:
        """Of the layers whose form is fixed."""
        return sum(unit.sizes[self.kept[unit.weight][1]] for unit in self.units if unit.weight in self.kept)

    @property
    def layer_bytes(self) -> int:
        """That all layers may have, under a bound of bytes or of bits."""
        if self.policy.max_bits is not None:
            return int(self.policy.max_bits * self.free_elements / 8) + self.kept_bytes
        return (self.policy.max_bytes or 0) - self.rest

    def bits(self, layer_bytes: int) -> float:
        """Of a weight in the mean, over the layers that the policy chooses for, if all layers have so many bytes."""
        return 8 * (layer_bytes - self.kept_bytes) / max(1, self.free_elements)

    def fullest_four_bits(self) -> str | None:
        """The form of 4 bits that a mix within the bound will have most of.

        It is the largest with which all layers that can take it are within the bound, those that cannot in their
        smallest one; the smallest where none is. `None` if the policy has no such form.
        """
        sizes = {form: self._uniform_bytes(form) for form in self.policy.forms if block_size(form) is not None}
        within = {form: size for form, size in sizes.items() if size <= self.layer_bytes}
        if within:
            return max(within, key=lambda form: within[form])
        return min(sizes, key=lambda form: sizes[form]) if sizes else None

    def _uniform_bytes(self, form: str) -> int:
        taken = self.kept_bytes
        for unit in self.units:
            if unit.weight not in self.kept:
                least = min((unit.sizes[each] for each in self.policy.forms if each in unit.sizes), default=None)
                taken += unit.sizes.get(form, unit.sizes[FLOAT] if least is None else least)
        return taken
