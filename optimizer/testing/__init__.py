"""Test your own passes: graphs for hypothesis, and the checks that every pass must stand.

    from hypothesis import given
    from optimizer.testing import check_pass, models

    @given(models())
    def test_my_pass(model):
        check_pass(MyPass(), model)

Needs the extra `tersor[testing]`.
"""

from optimizer.testing.checks import check_pass, difference
from optimizer.testing.strategies import DTYPES, FAMILIES, models

__all__ = ["DTYPES", "FAMILIES", "check_pass", "difference", "models"]
