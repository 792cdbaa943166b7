"""The digest of the user's code: the functions that can run, with the globals, closures and defaults that they read.

Reachability is by name, as in rapid type analysis (Bacon and Sweeney 1996): a method of a class counts if some
reached code mentions its name, if a library calls it through a class that it extends, or if Python itself calls it.
A function is its bytecode, so that comments and line numbers change nothing.
"""

from __future__ import annotations

import builtins
import dis
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from optimizer.cache.digest import Undigestable
from optimizer.cache.origin import home_of, is_library, is_standard, top_level

if TYPE_CHECKING:
    from optimizer.cache.objects import ObjectWalk

__all__ = ["CodeWalk"]

_PURE = frozenset(
    [
        "future__",
        "abc",
        "bisect",
        "builtins",
        "cmath",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "heapq",
        "itertools",
        "logging",
        "math",
        "numbers",
        "operator",
        "re",
        "statistics",
        "string",
        "textwrap",
        "types",
        "typing",
        "warnings",
        "weakref",
    ]
)
"""Modules of the standard library whose functions depend on their arguments alone, as far as results go."""

_UNSEEN = frozenset(("__import__", "breakpoint", "compile", "eval", "exec", "globals", "input", "open"))
"""Built-in functions by which code reads what cannot be seen in it."""

_DYNAMIC = frozenset(("getattr", "vars", "dir", "__dict__", "methodcaller", "attrgetter"))
"""Names with which code reaches attributes whose names are not written in it."""

_OPERATORS = "torch._ops"
"""What is defined there leads to operators of C++ and of users, which are looked at one by one."""

_CONSTRUCTS = frozenset(("type", "__class__"))

_BUILDING = frozenset(
    ["__new__", "__init__", "__post_init__", "__init_subclass__", "__set_name__", "__class_getitem__", "__prepare__"]
)
_NEVER = frozenset(
    [
        "__module__",
        "__qualname__",
        "__name__",
        "__doc__",
        "__dict__",
        "__weakref__",
        "__annotations__",
        "__slots__",
        "__abstractmethods__",
        "__parameters__",
        "__orig_bases__",
        "__static_attributes__",
        "__firstlineno__",
        "__match_args__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__repr__",
        "__str__",
        "__format__",
        "__del__",
        "__dir__",
        "__sizeof__",
        "__reduce__",
        "__reduce_ex__",
        "__getstate__",
        "__setstate__",
        "__copy__",
        "__deepcopy__",
        "__getnewargs__",
        "__getnewargs_ex__",
        "_abc_impl",
        "__subclasshook__",
        "__rich__",
        "__rich_repr__",
        "__signature__",
        "__type_params__",
        "__no_type_check__",
    ]
)
"""Attributes of a class that say nothing about what its instances compute."""

_NOT_CALLED = frozenset(
    [
        "extra_repr",
        "reset_parameters",
        "_init_weights",
        "init_weights",
        "train",
        "eval",
        "load_state_dict",
        "_load_from_state_dict",
    ]
)
"""Methods that a module overrides and nothing calls that runs or exports it."""


class CodeWalk:
    """Adds code to the digest of an `ObjectWalk`."""

    def __init__(self, walk: ObjectWalk) -> None:
        self._walk = walk
        self._digest = walk.digest
        self._names: set[str] = {"forward"}
        self._classes: list[type] = []
        self._built: set[type] = set()
        self._reached: set[tuple[type, str]] = set()

    def user_class(self, cls: type) -> None:
        """Note a class of the user; what of it can be reached is added by `settle`."""
        self._classes.append(cls)

    def settle(self) -> None:
        """Add what of the classes can be reached, until nothing more can."""
        while True:
            found = [item for cls in self._classes for item in self._newly_reached(cls)]
            if not found:
                return
            for cls, name in found:
                self._reached.add((cls, name))
                self._digest.add("attribute", cls.__qualname__, name)
                self._walk.visit(vars(cls)[name], f"{cls.__qualname__}.{name}")

    def function(self, function: types.FunctionType, where: str) -> None:
        """Add a function: one of a library by its name, any other by its code and what that reads."""
        self._digest.add("function", str(function.__module__), function.__qualname__)
        home = home_of(function)
        if home is not None and is_library(home):
            self._walk.library("library function", home)
            if _by_its_name(function, home) is function:
                return
        else:
            self._references(function.__code__, function, where)
        self._code(function.__code__)
        for part in (function.__defaults__, function.__kwdefaults__):
            self._walk.visit(part, f"a default of {where}")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._digest.add(name)
            try:
                content = cell.cell_contents
            except ValueError:  # not set yet
                continue
            self._walk.visit(content, f"{name} in {where}")
        for name, value in sorted(vars(function).items()):
            self._digest.add(name)
            self._walk.visit(value, f"{where}.{name}")

    def _newly_reached(self, cls: type) -> list[tuple[type, str]]:
        return [
            (cls, name)
            for name in sorted(vars(cls))
            if (cls, name) not in self._reached and self._is_reached(cls, name)
        ]

    def _is_reached(self, cls: type, name: str) -> bool:
        if isinstance(vars(cls)[name], (types.MemberDescriptorType, types.GetSetDescriptorType)):
            return False  # what a slot holds is a part of the instance
        if name in _BUILDING:
            return cls in self._built or not self._names.isdisjoint(_CONSTRUCTS)
        if name in self._names:
            return True
        if name in _NEVER:
            return False
        if name.startswith("__") and name.endswith("__"):
            return True
        if not self._names.isdisjoint(_DYNAMIC):
            return True
        overridden = any(name in vars(base) for base in cls.__mro__ if is_library(base.__module__))
        return overridden and name not in _NOT_CALLED

    def _code(self, code: types.CodeType) -> None:
        self._digest.add(
            "code",
            code.co_code,
            code.co_exceptiontable,
            code.co_flags,
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
            *code.co_names,
            "variables",
            *code.co_varnames,
            *code.co_cellvars,
            *code.co_freevars,
        )
        for constant in code.co_consts:
            self._constant(constant)

    def _constant(self, value: object) -> None:
        if isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, tuple):
            self._digest.add("tuple", len(value))
            for item in value:
                self._constant(item)
        elif isinstance(value, frozenset):
            self._digest.add("set", *sorted(repr(item) for item in value))
        else:
            self._digest.add(type(value).__name__, repr(value))

    def _references(self, code: types.CodeType, function: types.FunctionType, where: str) -> None:
        """Add the globals that code reads, and note the names of all attributes that it mentions."""
        self._names.update(code.co_names)
        self._names.update(constant for constant in code.co_consts if isinstance(constant, str))
        instructions = list(dis.get_instructions(code))
        for index, instruction in enumerate(instructions):
            name = str(instruction.argval)
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                attributes = _attribute_chain(instructions[index + 1 :])
                self._global(name, function.__globals__, attributes, where)
            elif instruction.opname == "IMPORT_NAME":
                self._import(name, instructions[index - 2].argval, where)
            elif instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                raise Undigestable(f"{where} changes the global variable {name!r}")
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._references(constant, function, where)

    def _global(self, name: str, variables: dict[str, Any], attributes: list[str], where: str) -> None:
        if name in variables:
            self._value(variables[name], name, attributes, where)
        elif name in _UNSEEN:
            raise Undigestable(f"{where} calls {name}()")
        else:
            self._digest.add("builtin" if hasattr(builtins, name) else "unbound", name)

    def _value(self, value: object, name: str, attributes: list[str], where: str) -> None:
        """A global, or what a chain of attributes of a module leads to."""
        while isinstance(value, types.ModuleType):
            _check_pure(value.__name__, name, where)
            following = getattr(value, attributes[0], None) if attributes else None
            if is_library(value.__name__):
                self._walk.library("module", value.__name__)
                if type(following).__module__ != _OPERATORS and value.__name__ != "torch.ops":
                    self._digest.add(*attributes)
                    return
            if following is None:
                raise Undigestable(f"{where} uses the module {value.__name__!r} as a whole")
            name = f"{name}.{attributes[0]}"
            value, attributes = following, attributes[1:]
        if isinstance(value, type) and not is_library(value.__module__):
            self._built.add(value)
        _check_pure(str(getattr(value, "__module__", None)), name, where)
        self._digest.add("global", name)
        self._walk.visit(value, f"{name} in {where}")

    def _import(self, name: str, level: object, where: str) -> None:
        """An import inside of a function is fine where it can bring in nothing but a library."""
        module = None if level else sys.modules.get(name)
        if module is None or not is_library(module.__name__):
            raise Undigestable(f"{where} imports {name!r} when it runs")
        _check_pure(module.__name__, name, where)
        self._walk.library("module", module.__name__)


def _by_its_name(function: types.FunctionType, home: str) -> object:
    """What the name that a function was defined under leads to in its own module; a decorator may give it another."""
    value: object = sys.modules.get(home)
    for part in function.__code__.co_qualname.split("."):
        value = vars(value).get(part) if isinstance(value, (type, types.ModuleType)) else None
    return getattr(value, "__func__", value)


def _attribute_chain(following: list[dis.Instruction]) -> list[str]:
    """The names of the attributes that are read one after the other, right after a value was loaded."""
    return list(_leading_attributes(following))


def _leading_attributes(following: list[dis.Instruction]) -> Iterator[str]:
    for instruction in following:
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            yield str(instruction.argval)
        elif instruction.opname not in ("PRECALL", "CACHE"):
            return


def _check_pure(module: str, name: str, where: str) -> None:
    """What is of the standard library has to depend on its arguments alone."""
    if is_standard(module) and top_level(module).lstrip("_") not in _PURE:
        raise Undigestable(f"{where} uses {name!r}, which may read what is not a part of the model")
