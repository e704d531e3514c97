"""What transformers tests its own models with and does not ship: a visible skip each."""

import pytest
from upstream_archive import MISSING


@pytest.mark.parametrize("path", MISSING)
def test_not_in_the_archive(path):
    pytest.skip(f"The source archive lacks tests/{path} ({MISSING[path]}).")
