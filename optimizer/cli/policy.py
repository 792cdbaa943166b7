"""The options of `--precision mixed`: the budget of a `PrecisionPolicy`, and the layers whose form is fixed."""

from __future__ import annotations

import argparse
from typing import Any

from optimizer.errors import InputError
from optimizer.precision_policy import PrecisionPolicy

__all__ = ["MIXED", "add_policy_options", "precision_of"]

MIXED = "mixed"
_OPTIONS = {"max_size": "--max-size", "max_bits": "--max-bits", "keep": "--keep", "forms": "--forms"}


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    policy = parser.add_argument_group(
        "--precision mixed",
        "the bits of each layer are chosen by what they cost on the calibration data, under one budget",
    )
    policy.add_argument("--max-size", metavar="SIZE", help='of all constants, scales counted, such as "60MB"')
    policy.add_argument("--max-bits", type=float, metavar="BITS", help="of a weight in the mean, scales counted")
    policy.add_argument(
        "--keep",
        action="append",
        metavar="LAYER=FORM",
        help="a layer, or a pattern with *, that stays in a form, such as 'head*=float32'; can be given again",
    )
    policy.add_argument("--forms", metavar="FORMS", help='to choose from, such as "float32,int8,int4-64"')


def precision_of(options: argparse.Namespace) -> str | PrecisionPolicy:
    """`precision` of `optimize()`.

    Raises:
        InputError: There is no budget or more than one, an option is malformed, or is not for this precision.
    """
    if options.precision != MIXED:
        given = next((name for name in _OPTIONS if getattr(options, name) is not None), None)
        if given is not None:
            raise InputError(f"{_OPTIONS[given]} is for --precision {MIXED}, not {options.precision!r}")
        precision: str = options.precision
        return precision
    more: dict[str, Any] = {}
    if options.forms is not None:
        more["forms"] = tuple(options.forms.split(","))
    return PrecisionPolicy(
        max_size=options.max_size,
        max_bits=options.max_bits,
        max_error=getattr(options, "max_error", None),
        keep=dict(map(_kept, options.keep or ())),
        **more,
    )


def _kept(text: str) -> tuple[str, str]:
    name, equals, form = text.rpartition("=")
    if not name or not equals:
        raise InputError(f"--keep must be LAYER=FORM, such as 'head*=float32', not {text!r}")
    return name, form
