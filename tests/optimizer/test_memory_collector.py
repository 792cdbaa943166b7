"""What Python's garbage collector looks at while a model is optimized."""

import gc

import pytest

from optimizer import optimize
from optimizer.errors import InputError
from optimizer.memory import old_objects_aside


def test_old_objects_are_set_aside_and_come_back() -> None:
    with old_objects_aside():
        assert gc.get_freeze_count() > 1000
        with old_objects_aside():  # the inner one does not end the outer one
            pass
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0


def test_they_come_back_after_an_error() -> None:
    with pytest.raises(InputError):
        optimize(object(), cache=False)
    assert gc.get_freeze_count() == 0


def test_what_somebody_else_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        with old_objects_aside():
            pass
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
