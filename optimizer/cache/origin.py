"""Where code comes from: the standard library, an installed distribution, this project, or its user.

What a distribution brought is what its version says; the user's own code has to be looked at.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import site
import sys
import sysconfig
from pathlib import Path
from types import FunctionType, ModuleType

from optimizer.cache.digest import Undigestable

__all__ = [
    "file_stamp",
    "function_of",
    "home_of",
    "is_library",
    "is_library_function",
    "is_own",
    "is_standard",
    "is_users_function",
    "package_stamp",
    "source_stamp",
    "top_level",
]

_ROOT = Path(__file__).resolve().parents[2]
_OWN = ("optimizer", "passes", "backends")


def top_level(module: str) -> str:
    """`"torch"` of `"torch.nn.modules"`."""
    return module.partition(".")[0]


@functools.cache
def is_standard(module: str) -> bool:
    """Whether a module is of the standard library, of the same name and from the same place."""
    if top_level(module) not in sys.stdlib_module_names or module == "__main__":
        return False
    file = _file_of(module)
    return file is None or any(file.is_relative_to(folder) for folder in _standard_folders())


@functools.cache
def is_library(module: str) -> bool:
    """Whether a loaded module is of the standard library, of an installed distribution or of this project."""
    if module == "__main__":
        return False
    if is_standard(module) or top_level(module) in _OWN:
        return True
    file = _file_of(module)
    if file is None:  # built in, a folder without code, or made by hand; only the first can be told by its package
        parent = module.rpartition(".")[0]
        return bool(parent) and is_library(parent)
    return any(folder in file.parents for folder in _site_folders())


def function_of(value: object) -> object:
    """The function in an attribute of a class; any other value as it is."""
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    return value.fget if isinstance(value, property) else value


def is_library_function(function: FunctionType) -> bool:
    """Whether a function was defined inside a library's own module: its globals are that module's."""
    module = home_of(function)
    return module is not None and is_library(module)


def is_users_function(function: FunctionType) -> bool:
    """Whether a function is the user's; libraries make some of theirs from text, with globals of no module."""
    home = home_of(function)
    if home is not None:
        return not is_library(home)
    file = function.__code__.co_filename
    if not file.startswith("<"):
        return not any(folder in _resolved(file).parents for folder in (*_standard_folders(), *_site_folders()))
    name = function.__globals__.get("__name__")
    return isinstance(name, str) and name in sys.modules and not is_library(name)


def home_of(function: FunctionType) -> str | None:
    """The loaded module whose variables a function's globals are; `None` if there is none."""
    variables = function.__globals__
    spec = variables.get("__spec__")
    for name in (variables.get("__name__"), getattr(spec, "name", None)):  # the first may be an alias
        module = sys.modules.get(name) if isinstance(name, str) else None
        if isinstance(module, ModuleType) and vars(module) is variables:
            return str(name)
    return None


@functools.cache
def package_stamp(package: str) -> str:
    """The version of the distribution that a top-level package is from.

    Raises:
        Undigestable: It cannot be told.
    """
    if package in sys.stdlib_module_names:
        return "python"
    if package in _OWN:
        return "tersor"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pass
    owners = importlib.metadata.packages_distributions().get(package, ())
    if not owners:
        raise Undigestable(f"the version of the package {package!r} is unknown")
    return ",".join(f"{owner}={importlib.metadata.version(owner)}" for owner in sorted(set(owners)))


@functools.cache
def file_stamp(module: str) -> str:
    """A digest of a loaded module's source; `""` for one that has none."""
    file = _file_of(module)
    if file is None or not file.is_file():
        return ""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def is_own(cls: type) -> bool:
    """Whether a class is one of this project, as `source_stamp` has seen it."""
    module, file = sys.modules.get(cls.__module__), _file_of(cls.__module__)
    known = file is not None and any(file.is_relative_to(_ROOT / folder) for folder in _OWN)
    return known and getattr(module, cls.__qualname__, None) is cls


@functools.cache
def source_stamp() -> str:
    """A digest of this project's own source, so that a change in a checkout is seen as well as another version."""
    digest = hashlib.sha256()
    for folder in _OWN:
        for file in sorted((_ROOT / folder).rglob("*.py")):
            content = file.read_bytes()
            digest.update(f"{file.relative_to(_ROOT)}:{len(content)}:".encode())
            digest.update(content)
    return digest.hexdigest()


def _file_of(module: str) -> Path | None:
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None) if isinstance(loaded, ModuleType) else None
    return _resolved(file) if isinstance(file, str) else None


@functools.cache
def _resolved(file: str) -> Path:
    return Path(file).resolve()


@functools.cache
def _standard_folders() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))


@functools.cache
def _site_folders() -> tuple[Path, ...]:
    named = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    named += [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    if site.ENABLE_USER_SITE:
        named.append(site.getusersitepackages())
    return tuple({Path(entry).resolve(): None for entry in named})
