"""A target that another package brings along: the one of docs/writing-a-backend.md, installed in a folder."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from backends import backend_kinds, get_backend
from optimizer import load, optimize
from optimizer.cli import main
from optimizer.errors import TargetError, UnsupportedError
from optimizer.target import Target

GUIDE = Path(__file__).parents[2] / "docs" / "writing-a-backend.md"
MODEL = """<ir_version: 10, opset_import: ["" : 23]> g (float[N,4] x) => (float[N,4] y) {
    a = Sigmoid(x) b = Mul(x, a) y = Add(b, x) }"""


def install(folder: Path, module: str, code: str, entry: str) -> None:
    """What pip leaves of a package of one module."""
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tersor.backends]\n{entry}\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def evaluator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    entry = re.search(r"^evaluator = \"(.*)\"$", GUIDE.read_text(), re.MULTILINE)
    assert code is not None
    assert entry is not None
    monkeypatch.delitem(sys.modules, "tersor_evaluator", raising=False)
    install(folder, "tersor_evaluator", code.group(1), f"evaluator = {entry.group(1)}")


@pytest.mark.usefixtures("evaluator")
def test_a_model_is_optimized_run_saved_and_loaded(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    compiled = optimize(ir.from_onnx_text(MODEL), "evaluator:plain", verify="each")
    assert compiled.target == "evaluator:plain"
    assert str(compiled.report.verification).startswith("verified against ONNX Runtime")
    expected = x / (1 + np.exp(-x)) + x
    np.testing.assert_allclose(compiled(x), expected, rtol=1e-5)
    assert [kernel.name for kernel in compiled.profile(x).kernels] == ["all of it"]
    compiled.save(tmp_path / "m.tersor")
    np.testing.assert_allclose(load(tmp_path / "m.tersor")(x), expected, rtol=1e-5)


@pytest.mark.usefixtures("evaluator")
def test_it_is_not_kept_in_the_cache(tmp_path: Path) -> None:
    compiled = optimize(ir.from_onnx_text(MODEL), "evaluator", cache=tmp_path / "cache")
    assert "not kept in the cache: the target evaluator is not one of this package" in compiled.report.notes


@pytest.mark.usefixtures("evaluator")
def test_it_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "evaluator" in backend_kinds()
    assert main(["targets"]) == 0
    assert "ONNX's reference" in capsys.readouterr().out
    with pytest.raises(TargetError, match="did you mean 'evaluator'"):
        Target.parse("evaluater")


@pytest.mark.usefixtures("evaluator")
def test_its_own_refusals_reach_the_caller() -> None:
    with pytest.raises(UnsupportedError, match="'fancy' means nothing"):
        optimize(ir.from_onnx_text(MODEL), "evaluator:fancy")


def test_without_the_package() -> None:
    with pytest.raises(TargetError, match="unknown target 'evaluator'"):
        optimize(ir.from_onnx_text(MODEL), "evaluator")
    with pytest.raises(TargetError, match="install the package that brings it"):
        get_backend("evaluator")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nowhere_to_be_found", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere"),
        ("class B:\n    name = 'broken_one'", "lacks precisions, mappable, prewarm"),
        (
            "from backends.base import Backend\nclass B(Backend):\n    name = 'other'\n    precisions = mappable = ()",
            "calls itself 'other'",
        ),
    ],
)
def test_a_package_that_is_broken(
    code: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "broken_one", raising=False)
    install(folder, "broken_one", code, "broken_one = broken_one:B")
    with pytest.raises(
        TargetError, match=f"the target 'broken_one' of broken_one 1.0 cannot be loaded|{message}"
    ) as error:
        optimize(ir.from_onnx_text(MODEL), "broken_one")
    assert re.search(message, str(error.value))
    assert main(["targets", "--json"]) == 0
    assert "not available: the target 'broken_one'" in capsys.readouterr().out


def test_our_own_kinds_cannot_be_replaced(folder: Path) -> None:
    install(folder, "usurper", "class B: name = 'cpu'", "cpu = usurper:B")
    assert type(get_backend("cpu")).__module__ == "backends.cpu.backend"
    assert backend_kinds().count("cpu") == 1
