"""The embedded texts are prepared once for all tests here."""

import pytest
from accelerate.state import AcceleratorState, GradientState


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """A trainer of another precision or process count may have been there before."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
