"""A folder for files that a model needs: kept when it is wanted, gone when what was to use it failed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from optimizer.scratch import folder_kept_on_success


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_after_a_success_the_folder_stays_and_is_private(place: Path) -> None:
    with folder_kept_on_success() as folder:
        (folder / "kernels.so").write_bytes(b"code")
    assert list(place.iterdir()) == [folder]
    assert (folder / "kernels.so").read_bytes() == b"code"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_error_or_an_interrupt_it_is_gone(place: Path, error: type[BaseException]) -> None:
    def use() -> None:
        with folder_kept_on_success() as folder:
            (folder / "part").mkdir()
            (folder / "part" / "kernels.so").write_bytes(b"code")
            raise error("in between")

    with pytest.raises(error, match="in between"):
        use()
    assert list(place.iterdir()) == []


def test_the_error_is_not_hidden_when_the_folder_is_gone_already(place: Path) -> None:
    def use() -> None:
        with folder_kept_on_success() as folder:
            folder.rmdir()
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        use()
