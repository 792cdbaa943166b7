"""Generated graphs on a device: what hypothesis draws agrees with ONNX Runtime, with sizes of several kinds."""

import onnx_ir as ir
from hypothesis import HealthCheck, given, settings

from optimizer import optimize
from optimizer.reference import Oracle
from optimizer.testing import DTYPES, models


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(models(dtypes=DTYPES, max_steps=8))
def test_generated_graphs(model: ir.Model) -> None:
    compiled = optimize(model, "opencl", progress=False)
    if compiled.report.verification.error is None:
        return
    oracle = Oracle(model.clone(), seed=1, other_sizes=True)
    names = [value.name or "" for value in model.graph.outputs]
    for case in oracle.cases:
        found = compiled(*case.inputs)
        outputs = list(found) if isinstance(found, (list, tuple)) else [found]
        result = oracle.tolerance.compare(outputs, case.outputs, names)
        assert result.passed, f"output {result.output!r}: {result.reason}"
