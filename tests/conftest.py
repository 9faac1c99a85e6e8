"""One thread a test, and caches of their own: what a user has in the home folder is neither read nor written."""

import os
import tempfile

import pytest

# Before torch and the Hub libraries are imported, which read them once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
_HOME = tempfile.TemporaryDirectory(prefix="hfgen-tests-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _HOME.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRACKIO_DIR"] = os.path.join(_HOME.name, "trackio")


@pytest.fixture
def environ():
    """`os.environ`, put back after the test."""
    before = dict(os.environ)
    yield os.environ
    os.environ.clear()
    os.environ.update(before)
