"""Compiled models that are kept from one process to the next.

`optimize()` asks for the result of a call with the same model, options, machine and versions before it does anything.
A result that cannot be found, read, trusted or stored is made anew, and the report says why it was not kept.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import Loader
from optimizer.cache.limit import parse_limit
from optimizer.cache.store import Store, Unusable, default_folder
from optimizer.cache_record import CacheRecord
from optimizer.compiled import CompiledModel
from optimizer.errors import InputError
from optimizer.executable import Executable
from optimizer.progress import Stages

if TYPE_CHECKING:
    from optimizer.model_diff.facts import Side
    from optimizer.pass_manager import Pass
    from optimizer.target import Target

__all__ = ["FOLDER_VARIABLE", "LIMIT_VARIABLE", "Lookup", "open_store"]

FOLDER_VARIABLE = "TERSOR_CACHE"
"""The folder of the cache; `off` for none."""
LIMIT_VARIABLE = "TERSOR_CACHE_SIZE"
"""How large it may be, such as `20GB`."""
_OFF = "off"


def open_store(choice: object = True) -> Store | None:
    """The cache that a caller, or the environment, asks for.

    Args:
        choice: `True` for that of the environment, `False` for none, or a folder.

    Raises:
        InputError: It is something else, or the environment's limit is no size.
        Unusable: There is no folder for it.
    """
    if not isinstance(choice, (bool, str, os.PathLike)) or choice == "":
        raise InputError(f"cache must be True, False or a folder, not {choice!r}")
    named = os.environ.get(FOLDER_VARIABLE, "")
    if choice is False or (choice is True and named == _OFF):
        return None
    limit = os.environ.get(LIMIT_VARIABLE)
    folder = Path(named) if choice is True and named else default_folder() if choice is True else Path(choice)
    return Store(folder, None if not limit else parse_limit(limit, LIMIT_VARIABLE))


class Lookup:
    """What a call of `optimize()` has to do with the cache."""

    def __init__(self, arguments: Mapping[str, object], pipeline: Sequence[Pass], target: Target) -> None:
        """Note what is asked for; nothing is read yet.

        Args:
            arguments: The parameters of `optimize()` by name. All are part of the key but those that the key says.
            pipeline: The passes.
            target: Where the model will run.

        Raises:
            InputError: The parameter `cache` is of no use.
        """
        self._arguments = arguments
        self._pipeline = pipeline
        self._target = target
        self._key: str | None = None
        self._note = ""
        self._store: Store | None = None
        try:
            self._store = open_store(arguments["cache"])
        except Unusable as reason:
            self._note = f"not kept in the cache: {reason}"
        if arguments["verify"] == "each":
            self._store = None  # who asks for that wants to see the passes run

    def find(self, get_loader: Callable[[str], Loader], stages: Stages) -> CompiledModel | None:
        """The model, if it was compiled before."""
        if self._store is None:
            return None
        from optimizer.cache.digest import Undigestable
        from optimizer.cache.key import make_key

        with stages("looking into the cache"):
            try:
                self._key = make_key(self._arguments, self._pipeline, self._target)
                found = self._store.find(self._key, get_loader)
            except (Undigestable, Unusable) as reason:
                self._key = None
                self._note = f"not kept in the cache: {reason}"
                return None
        if found is None:
            return None
        compiled, record = found
        compiled.report = dataclasses.replace(compiled.report, stages=stages.seconds, cached=record)
        return compiled

    def keep(self, compiled: CompiledModel, executable: Executable, original: Side) -> CompiledModel:
        """Store a model that was compiled anew; it is given back, with a note if it could not be stored.

        Args:
            compiled: The model.
            executable: What it runs.
            original: The graph before the passes.
        """
        if self._store is not None and self._key is not None:
            from optimizer.cache.digest import Undigestable
            from optimizer.cache.key import make_key, name_of

            model, seed = self._arguments["model"], self._arguments["seed"]
            record = CacheRecord.now(self._key, name_of(model), compiled.report.seconds, int(str(seed)))
            try:
                is_file = isinstance(model, (str, os.PathLike))
                if is_file and make_key(self._arguments, self._pipeline, self._target) != self._key:
                    raise Unusable("the file was changed meanwhile")
                self._store.keep(compiled, executable, original, record)
            except (Undigestable, Unusable) as reason:
                self._note = f"not kept in the cache: {reason}"
        if self._note:
            compiled.report = dataclasses.replace(compiled.report, notes=(*compiled.report.notes, self._note))
        return compiled
