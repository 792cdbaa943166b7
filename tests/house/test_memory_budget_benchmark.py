from __future__ import annotations

import onnx
import pytest

from benchmarks.memory_budget import SECTION, fixed, main, measure, merged
from benchmarks.results import RESULTS
from models import ppocr, unet


@pytest.mark.slow
def test_a_small_network_at_half_of_its_memory() -> None:
    whole, half = measure(unet.build(4, 3, 64, "unet"), [0.5], threads=1, rounds=1)
    assert len(whole) == len(half) == len(SECTION.columns)
    assert float(half[2]) < float(whole[2])
    assert float(half[3]) < float(whole[3])
    assert float(half[8]) < 1e-5


def test_sizes_of_a_file_are_those_of_its_example() -> None:
    case = ppocr.recognition()
    model = fixed(case).model
    assert isinstance(model, onnx.ModelProto)
    (given,) = model.graph.input
    assert [dim.dim_value for dim in given.type.tensor_type.shape.dim] == [1, 3, 48, 320]
    onnx.shape_inference.infer_shapes(model, strict_mode=True)


def test_the_results_have_a_place_for_the_table() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    assert text.index(SECTION.begin) < text.index(SECTION.end)


def test_rows_of_models_that_were_not_measured_stay() -> None:
    kept = [["unet-1024", "none", "old"], ["mine", "none", "old"], ["bert-base-512", "none", "old"]]
    new = [("vit-1024", "none", "new"), ("bert-base-512", "9.0", "new")]
    assert merged(new, kept) == [new[0], kept[0], new[1], kept[1]]


def test_rows_of_another_number_of_threads_do_not_get_into_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--write", "--threads", "1"])
    assert "all rows of the table in RESULTS.md are of 2 threads" in capsys.readouterr().err
