"""The digest of Python objects: their types, their state, and the code that can run.

An object is digested by what it holds, its class by where it is from: that of a library by the library's version,
that of the user by the methods that can be reached. Each object goes in once; where it comes again, its number does,
so that shared and cyclic structures are told apart from copies. Whatever has no known form is refused.
"""

from __future__ import annotations

import collections
import enum
import functools
import logging
import re
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from optimizer.cache.code import CodeWalk
from optimizer.cache.digest import Digest, Undigestable
from optimizer.cache.origin import (
    file_stamp,
    function_of,
    is_library,
    is_standard,
    is_users_function,
    package_stamp,
    top_level,
)

__all__ = ["ObjectWalk"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented), range)
_BUILTIN_BASES = (object, dict, list, tuple, set, frozenset, str, bytes, int, float, collections.OrderedDict)
"""Types written in C whose state is known: their content, beside the attributes of an instance."""
_C_FUNCTIONS = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_SLOT = types.MemberDescriptorType
_BARE = object.__basicsize__

Handler = Callable[["ObjectWalk", Any, str], bool]
"""Digests a value if it is of a kind that it knows, and says whether it did."""


class ObjectWalk:
    """Adds objects to a digest.

    Attributes:
        digest: What they are added to.
        handlers: Tried before anything else.
        packages: Top-level packages of the library code that was reached.
    """

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.handlers: list[Handler] = []
        self.packages: set[str] = set()
        self.code = CodeWalk(self)
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []

    def add(self, value: object, where: str) -> None:
        """Add a value with all that can be reached from it.

        Args:
            value: Anything.
            where: What to call it in a message.

        Raises:
            Undigestable: Something in it has no digest.
        """
        try:
            self.visit(value, where)
            self.code.settle()
        except RecursionError as error:
            raise Undigestable(f"{where} is nested too deeply") from error

    def visit(self, value: object, where: str) -> None:
        """Like `add`, inside of a walk."""
        if type(value) in _PLAIN:
            self.digest.add(type(value).__name__, repr(value))
            return
        if id(value) in self._numbers:
            self.digest.add("seen", self._numbers[id(value)])
            return
        self._numbers[id(value)] = len(self._numbers)
        self._kept.append(value)  # so that no other object gets its id
        if any(handler(self, value, where) for handler in self.handlers):
            return
        if not (self._visit_code(value, where) or self._visit_container(value, where) or self._visit_named(value)):
            self._visit_instance(value, where)

    def _visit_code(self, value: object, where: str) -> bool:
        """Functions, classes, modules and what wraps functions."""
        if isinstance(value, types.FunctionType):
            self.code.function(value, where)
        elif isinstance(value, type):
            self.visit_class(value, where)
        elif isinstance(value, types.MethodType):
            self._parts("method", where, value.__func__, value.__self__)
        elif isinstance(value, (staticmethod, classmethod)):
            self._parts(type(value).__name__, where, value.__func__)
        elif type(value) is property:
            self._parts("property", where, value.fget, value.fset, value.fdel)
        elif type(value) is functools.cached_property:
            self._parts("cached_property", where, value.func)
        elif type(value) is functools.partial:
            self._parts("partial", where, value.func, value.args, value.keywords, vars(value))
        elif isinstance(value, types.ModuleType):
            if not is_library(value.__name__):
                raise Undigestable(f"{where} is the module {value.__name__!r}, of which anything may be used")
            self.library("module", value.__name__)
        elif isinstance(value, _C_FUNCTIONS):
            self._c_function(value, where)
        else:
            return False
        return True

    def _c_function(self, value: Any, where: str) -> None:
        self.digest.add("C function", str(getattr(value, "__module__", None)), value.__qualname__)
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType):
            self.visit(owner, where)

    def _visit_container(self, value: object, where: str) -> bool:
        kind = type(value)
        if kind in (list, tuple, collections.deque):
            self.digest.add(kind.__name__, len(value))  # type: ignore[arg-type]
            for index, item in enumerate(value):  # type: ignore[arg-type, var-annotated]
                self.visit(item, f"{where}[{index}]")
        elif kind in (dict, collections.OrderedDict, types.MappingProxyType):
            self._mapping(value, where)  # type: ignore[arg-type]
        elif kind in (set, frozenset):
            if any(type(item) not in _PLAIN for item in value):  # type: ignore[attr-defined]
                raise Undigestable(f"{where} is a set, which has no order, of more than plain values")
            self.digest.add(kind.__name__, *sorted(f"{type(item).__name__} {item!r}" for item in value))  # type: ignore[attr-defined]
        elif kind is slice:
            self._parts("slice", where, value.start, value.stop, value.step)  # type: ignore[attr-defined]
        else:
            return False
        return True

    def _mapping(self, value: Mapping[Any, Any], where: str) -> None:
        self.digest.add(type(value).__name__, len(value))
        for key, item in value.items():
            self.visit(key, f"a key of {where}")
            self.visit(item, f"{where}[{key!r}]" if type(key) in _PLAIN else f"an item of {where}")

    def _visit_named(self, value: object) -> bool:
        """Values that their text says all of."""
        if isinstance(value, np.ndarray) and type(value) is np.ndarray and not value.dtype.hasobject:
            self.digest.add_array(value)
        elif isinstance(value, (np.dtype, np.ufunc)) or (isinstance(value, np.generic) and value.dtype.kind != "O"):
            self.digest.add("numpy", repr(value))
        elif isinstance(value, enum.Enum):
            self.digest.add("enum", value.name)
            self.visit(type(value), value.name)
            self.visit(value.value, value.name)
        elif isinstance(value, PurePath):
            self.digest.add("path", str(value))
        elif isinstance(value, re.Pattern):
            self.digest.add("pattern", repr(value.pattern), value.flags)
        elif isinstance(value, logging.Logger):
            self.digest.add("logger", value.name)
        elif isinstance(value, (types.GenericAlias, types.UnionType)):
            self.digest.add("type", repr(value))
        else:
            return False
        return True

    def _visit_instance(self, value: object, where: str) -> None:
        """An object of a class written in Python: its class, what it holds, and its attributes."""
        cls = type(value)
        if not is_python_class(cls):
            raise Undigestable(f"{where} is a {cls.__module__}.{cls.__qualname__}, whose state cannot be seen")
        self.digest.add("instance")
        self.visit(cls, f"the class of {where}")
        contents: tuple[tuple[type, Callable[[Any], Any]], ...] = (
            (dict, dict.items),
            (list, list.__iter__),
            (tuple, tuple.__iter__),
        )
        for base, content in contents:
            if isinstance(value, base):
                for item in content(value):
                    self.visit(item, f"an item of {where}")
        if isinstance(value, (set, frozenset)):
            raise Undigestable(f"{where} is a kind of set, which has no order")
        for plain in (str, bytes, int, float):
            if isinstance(value, plain):
                self.digest.add(plain.__repr__(value))
        for name, held in sorted(_attributes(value).items()):
            self.digest.add(name)
            self.visit(held, f"{where}.{name}")

    def visit_class(self, cls: type, where: str) -> None:
        """A class: by its library's version, or by its bases and what of it can be reached."""
        self.digest.add("class", cls.__module__, cls.__qualname__)
        if cls.__module__ == "builtins":
            return
        if cls.__module__ not in sys.modules:
            raise Undigestable(f"{where} is from the module {cls.__module__!r}, which is not loaded")
        if is_library(cls.__module__):
            self.library("library class", cls.__module__)
            for base in cls.__mro__:
                self._replaced(base)
            return
        if type(cls) is not type:
            self.visit(type(cls), f"the metaclass of {where}")
        for base in cls.__bases__:
            self.visit(base, f"a base of {where}")
        self.code.user_class(cls)

    def library(self, kind: str, module: str) -> None:
        """Something of a library: its version, and the file, which somebody may have edited."""
        package = top_level(module)
        self.packages.add(package)
        self.digest.add(kind, module, package_stamp(package))
        if not is_standard(module):
            self.digest.add(file_stamp(module))

    def _replaced(self, cls: type) -> None:
        """Methods that the user has put into a library's class."""
        for name, value in sorted(vars(cls).items()):
            function = function_of(value)
            if isinstance(function, types.FunctionType) and is_users_function(function):
                self.digest.add("replaced", name)
                self.visit(value, f"{cls.__qualname__}.{name}")

    def _parts(self, kind: str, where: str, *parts: object) -> None:
        self.digest.add(kind, len(parts))
        for part in parts:
            self.visit(part, where)


def is_python_class(cls: type) -> bool:
    """Whether instances have no state but what their attributes, and the builtin types that it extends, show."""
    for base in cls.__mro__:
        if base in _BUILTIN_BASES:
            continue
        module = sys.modules.get(base.__module__)
        file = getattr(module, "__file__", None)
        written_in_python = base.__module__ == "__main__" or (isinstance(file, str) and file.endswith(".py"))
        if module is None or not written_in_python or not _shows_state(base):
            return False
    return True


def _shows_state(cls: type) -> bool:
    """Whether a class adds a `__dict__`, slots or nothing to what it extends; one written in C adds fields."""
    own = vars(cls)
    return bool(cls.__dictoffset__) or "__slots__" in own or cls.__basicsize__ == _BARE


def _attributes(value: object) -> dict[str, object]:
    found: dict[str, object] = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        for name, slot in vars(cls).items():
            if isinstance(slot, _SLOT) and cls not in _BUILTIN_BASES:
                try:
                    found[f"{cls.__qualname__}.{name}"] = slot.__get__(value)
                except AttributeError:  # not set
                    continue
    return found
