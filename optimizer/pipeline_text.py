"""Reading and writing options of passes: the small language of pipeline strings."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from optimizer.errors import PipelineError

__all__ = ["PipelineParser", "format_options"]


def format_options(options: Mapping[str, object]) -> str:
    """Options in braces, `""` for none: `{max_rounds=4}`."""
    if not options:
        return ""
    return "{" + ",".join(f"{key}={_format_value(value)}" for key, value in options.items()) + "}"


def _format_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class PipelineParser:
    """Recursive descent over `sequence := item (',' item)*`, `item := name group? options?`.

    Args:
        text: The string.
        registry: The passes by name.
        group: What `fixpoint(...)` makes.

    Raises:
        PipelineError: From every method, with the whole string and what is wrong with it.
    """

    _TOKEN = re.compile(r"\s*([^\s,(){}=]+|[,(){}=])")

    def __init__(self, text: str, registry: Mapping[str, type[Any]], group: type[Any]) -> None:
        self._text = text
        self._registry = registry
        self._group = group
        self._tokens = self._TOKEN.findall(text)
        self._next = 0

    def sequence(self) -> list[Any]:
        """The passes, as far as they go."""
        passes = [self._item()]
        while self._accept(","):
            passes.append(self._item())
        return passes

    def expect_end(self) -> None:
        """There must be nothing left."""
        if self._next < len(self._tokens):
            raise self._error(f"{self._tokens[self._next]!r} where ',' or the end was expected")

    def _item(self) -> Any:
        name = self._word("the name of a pass")
        if name == "fixpoint":
            self._expect("(")
            passes = tuple(self.sequence())
            self._expect(")")
            return self._build(self._group, name, {"passes": passes})
        if name not in self._registry:
            raise self._error(f"no pass is called {name!r}{_suggest(name, [*self._registry, 'fixpoint'])}")
        return self._build(self._registry[name], name, {})

    def _build(self, cls: type[Any], name: str, given: dict[str, object]) -> Any:
        known = typing.get_type_hints(cls)
        fields = [field.name for field in dataclasses.fields(cls) if field.name not in given and field.compare]
        for key, value in self._options():
            if key not in fields:
                has = f"it has {', '.join(fields)}" if fields else "it has none"
                raise self._error(f"{name!r} has no option {key!r}{_suggest(key, fields)}; {has}")
            if key in given:
                raise self._error(f"option {key!r} of {name!r} is given twice")
            given[key] = self._value(f"{name}{{{key}}}", value, known[key])
        return cls(**given)

    def _options(self) -> Iterator[tuple[str, str]]:
        if not self._accept("{"):
            return
        while True:
            key = self._word("the name of an option")
            self._expect("=")
            yield key.replace("-", "_"), self._word(f"a value for {key!r}")
            if self._accept("}"):
                return
            self._expect(",")

    def _value(self, what: str, text: str, type_: object) -> object:
        if type_ is bool:
            if text not in ("true", "false"):
                raise self._error(f"{what} must be true or false, not {text!r}")
            return text == "true"
        try:
            return type_(text) if type_ in (int, float, str) else text
        except ValueError as error:
            raise self._error(f"{what} must be of type {getattr(type_, '__name__', type_)}, not {text!r}") from error

    def _word(self, what: str) -> str:
        token = self._tokens[self._next] if self._next < len(self._tokens) else "the end"
        if token == "the end" or token in ",(){}=":
            raise self._error(f"{token!r} where {what} was expected" if token != "the end" else f"{what} is missing")
        self._next += 1
        return str(token)

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            found = repr(self._tokens[self._next]) if self._next < len(self._tokens) else "the end"
            raise self._error(f"{found} where {token!r} was expected")

    def _accept(self, token: str) -> bool:
        found = self._next < len(self._tokens) and self._tokens[self._next] == token
        self._next += found
        return found

    def _error(self, problem: str) -> PipelineError:
        return PipelineError(f"in pipeline {self._text!r}: {problem}")


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
