"""One batch of generated graphs through `optimize`, in a process of its own; the result is a line of JSON.

python -m tests.generated.batch SEED COUNT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx_ir as ir
from hypothesis import HealthCheck, Phase, given, seed, settings

from optimizer import optimize
from optimizer.errors import TersorError
from optimizer.reference import Oracle
from optimizer.testing import DTYPES, models

__all__ = ["check", "main"]


def check(model: ir.Model) -> bool:
    """The compiled model computes what the model does, with the sizes it was verified with and with others.

    Returns:
        Whether there was something to compare with.

    Raises:
        AssertionError: It does not.
        TersorError: It could not be compiled, or a result differs.
    """
    compiled = optimize(model, "cpu", progress=False)
    if compiled.report.verification.error is None:
        return False
    oracle = Oracle(model.clone(), seed=1, other_sizes=True)
    names = [value.name or "" for value in model.graph.outputs]
    for case in oracle.cases:
        found = compiled(*case.inputs)
        outputs = list(found) if isinstance(found, (list, tuple)) else [found]
        result = oracle.tolerance.compare(outputs, case.outputs, names)
        assert result.passed, f"output {result.output!r}: {result.reason}"
    return True


def main(first: int, count: int) -> int:
    """Generate and check; a failing graph is shrunk and printed."""
    compared = total = 0
    last: list[str] = []

    @seed(first)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(models(dtypes=DTYPES, max_steps=10))
    def every(model: ir.Model) -> None:
        nonlocal compared, total
        total += 1
        last[:] = [str(ir.to_proto(model))]
        compared += check(model)

    failure = ""
    try:
        every()
    except (AssertionError, TersorError) as error:
        failure = f"{type(error).__name__}: {error}\n{last[0]}"
    print(json.dumps({"seed": first, "total": total, "compared": compared, "failure": failure}))
    return int(bool(failure))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
