"""The contract of a pass, and the manager that runs a list of them.

A pass is a frozen dataclass on `Pass`; its fields are its options. It prints back as the string that `parse_pipeline`
reads:

    fold-constants{max_growth_bytes=1024},fixpoint(merge-reshapes,remove-unused){max_rounds=4}

The manager only runs passes in order and keeps provenance. Timing, measuring and checking are instruments
(`optimizer.instruments`), so that a run without them costs nothing more than its passes.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from optimizer.errors import PassError, PipelineError, TersorError
from optimizer.ir import provenance
from optimizer.ir.near_miss import NearMiss, RewriteResult

if TYPE_CHECKING:
    from optimizer.instruments import Instrument

__all__ = ["Fixpoint", "Pass", "PassManager", "RunResult", "format_pipeline", "parse_pipeline"]

_PASS_BUGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    ir.passes.InvariantError,
)
"""What a faulty pass may raise; the manager turns it into a `PassError` that names the pass."""

_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclasses.dataclass(frozen=True)
class Pass(ir.passes.InPlacePass):
    """Base of every pass.

    A subclass is a frozen dataclass too. It implements `call(model)`, which changes the model in place and says in
    its result whether it did. Running it a second time must change nothing. `passes/README.md` says what else a pass
    may assume and must keep.
    """

    @property
    def name(self) -> str:
        """The class name in kebab case: `FoldConstants` is `fold-constants`."""
        return _WORD_BOUNDARY.sub("-", type(self).__name__).lower()

    def options(self) -> dict[str, bool | int | float | str]:
        """The options that differ from their defaults."""
        changed = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                changed[field.name] = value
        return changed

    def __str__(self) -> str:
        return self.name + _format_options(self.options())


@dataclasses.dataclass(frozen=True)
class Fixpoint(Pass):
    """Runs its passes in turn until none of them changes the model any more.

    Attributes:
        passes: The passes, in order.
        max_rounds: How often each pass runs at most.
    """

    passes: tuple[Pass, ...] = ()
    max_rounds: int = 8

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the group on its own, without a manager and so without instruments."""
        return ir.passes.PassResult(model, self.run_with(lambda pass_: pass_(model).modified))

    def run_with(self, run: Callable[[Pass], bool]) -> bool:
        """Run the group through `run`, which runs one pass and says whether it changed the model.

        The group ends as soon as every pass has seen the model as it is, so the last round may be a part of one.
        """
        modified = False
        settled = 0
        for pass_ in self._schedule():
            if run(pass_):
                modified = True
                settled = 0
            else:
                settled += 1
            if settled == len(self.passes):
                break
        return modified

    def _schedule(self) -> Iterator[Pass]:
        for _ in range(self.max_rounds):
            yield from self.passes

    def __str__(self) -> str:
        rounds = {} if self.max_rounds == Fixpoint.max_rounds else {"max_rounds": self.max_rounds}
        return f"fixpoint({format_pipeline(self.passes)}){_format_options(rounds)}"


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run of the manager did.

    Attributes:
        model: The model that was passed in, changed in place.
        modified: Whether any pass changed it.
        near_misses: Where a pass nearly fired and why it did not, by the last run of each pass.
    """

    model: ir.Model
    modified: bool
    near_misses: tuple[NearMiss, ...] = ()


class PassManager:
    """Runs passes in order.

    Args:
        passes: The passes; a `Fixpoint` among them runs its own until they settle.
    """

    def __init__(self, passes: Iterable[Pass]) -> None:
        self.passes = tuple(passes)

    def run(self, model: ir.Model, instruments: Sequence[Instrument] = ()) -> RunResult:
        """Run every pass on the model, in place.

        Args:
            model: Its nodes are in topological order, as ONNX demands.
            instruments: Told before and after each pass, in this order.

        Raises:
            PassError: A pass failed, or an instrument found that it broke its contract.
        """
        near_misses: dict[str, list[NearMiss]] = {}

        def run(pass_: Pass) -> bool:
            if isinstance(pass_, Fixpoint):
                return pass_.run_with(run)
            result = _run_one(pass_, model, instruments)
            if isinstance(result, RewriteResult):
                near_misses[str(pass_)] = [
                    dataclasses.replace(miss, pass_name=pass_.name) for miss in result.near_misses
                ]
            return result.modified

        provenance.mark_originals(model)
        changes = [run(pass_) for pass_ in self.passes]
        return RunResult(model, any(changes), tuple(miss for found in near_misses.values() for miss in found))

    def __str__(self) -> str:
        return format_pipeline(self.passes)


def _named(miss: NearMiss, pass_: Pass) -> NearMiss:
    return dataclasses.replace(miss, pass_name=pass_.name)


def _run_one(pass_: Pass, model: ir.Model, instruments: Sequence[Instrument]) -> ir.passes.PassResult:
    for instrument in instruments:
        instrument.before_pass(pass_, model)
    before = provenance.Snapshot(model)
    start = time.perf_counter()
    try:
        result = pass_(model)
    except TersorError:
        raise
    except _PASS_BUGS as error:
        raise PassError(f"failed with {type(error).__name__}: {error}", pass_name=pass_.name) from error
    seconds = time.perf_counter() - start
    if result.modified:
        before.mark_changes(model, pass_.name)
    for instrument in instruments:
        instrument.after_pass(pass_, model, result.modified, seconds)
    return result


# --- Pipeline strings ---


def format_pipeline(passes: Iterable[Pass]) -> str:
    """The string that `parse_pipeline` turns into the same passes."""
    return ",".join(str(pass_) for pass_ in passes)


def parse_pipeline(text: str, registry: Mapping[str, type[Pass]]) -> list[Pass]:
    """Read passes from a string such as `"fold-constants,fixpoint(merge-reshapes,remove-unused){max_rounds=4}"`.

    Args:
        text: Names in kebab case, separated by commas; options in braces; groups in parentheses after `fixpoint`.
        registry: The passes by name; usually `passes.registry.PASSES`.

    Raises:
        PipelineError: The string is malformed, or names a pass or an option that does not exist.
    """
    parser = _Parser(text, registry)
    passes = parser.sequence()
    parser.expect_end()
    return passes


def _format_options(options: Mapping[str, object]) -> str:
    if not options:
        return ""
    return "{" + ",".join(f"{key}={_format_value(value)}" for key, value in options.items()) + "}"


def _format_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Parser:
    """Recursive descent over `sequence := item (',' item)*`, `item := name group? options?`."""

    _TOKEN = re.compile(r"\s*([^\s,(){}=]+|[,(){}=])")

    def __init__(self, text: str, registry: Mapping[str, type[Pass]]) -> None:
        self._text = text
        self._registry = registry
        self._tokens = self._TOKEN.findall(text)
        self._next = 0

    def sequence(self) -> list[Pass]:
        passes = [self._item()]
        while self._accept(","):
            passes.append(self._item())
        return passes

    def expect_end(self) -> None:
        if self._next < len(self._tokens):
            raise self._error(f"{self._tokens[self._next]!r} where ',' or the end was expected")

    def _item(self) -> Pass:
        name = self._word("the name of a pass")
        if name == "fixpoint":
            self._expect("(")
            passes = tuple(self.sequence())
            self._expect(")")
            return self._build(Fixpoint, name, {"passes": passes})
        if name not in self._registry:
            raise self._error(f"no pass is called {name!r}{_suggest(name, [*self._registry, 'fixpoint'])}")
        return self._build(self._registry[name], name, {})

    def _build(self, cls: type[Pass], name: str, given: dict[str, object]) -> Pass:
        known = typing.get_type_hints(cls)
        fields = [field.name for field in dataclasses.fields(cls) if field.name not in given]
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
