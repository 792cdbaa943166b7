"""What the backends that compile through TVM have in common: the compile process, and weights that may be mapped."""

from __future__ import annotations

from backends.base import Backend
from backends.relax.executable import WEIGHTS

__all__ = ["RelaxBackend"]


class RelaxBackend(Backend):
    """A backend whose code is generated in the compile process."""

    mappable = (WEIGHTS,)

    def prewarm(self) -> None:
        """Start the compile process."""
        from backends.relax.client import PROCESS

        PROCESS.start()

    def rest(self) -> None:
        """End the compile process; `compile` starts another."""
        from backends.relax.client import PROCESS

        PROCESS.release()
