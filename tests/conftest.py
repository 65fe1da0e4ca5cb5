"""Fixtures every test may use."""

import os
from pathlib import Path

# before torch is imported: tests are many small products, and threads that wait for each other at every one of them
# take several times as long as a single thread wherever another program runs
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden files and data sets beside the project's root; the test skips where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (golden files and data sets), which this checkout does not have beside it")
    return folder


LONGEST = "test_interpreted_"  # files of one test of minutes each


def pytest_collection_modifyitems(config, items):
    """Among several processes those of minutes go first, then files with a slow test: the last file would else keep one
    busy and the others idle."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (not item.path.name.startswith(LONGEST), item.path not in slow))
