"""What the machine does not give is no damage of an adapter."""

import errno
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from dts.nn.loaded import _read_again
from dts.serve.catalogue import Catalogue
from dts.serve.refused import Refused

GOLDEN = Path(__file__).parents[1] / "adapter" / "golden" / "5-thinned"


@contextmanager
def no_file_handle():
    """Nothing more can be opened by this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def catalogue(tmp_path):
    for name in ("one", "two"):
        shutil.copytree(GOLDEN, tmp_path / name)
    return Catalogue(tmp_path, "base", None)


def refused(function, *args):
    with pytest.raises(Refused) as error:
        function(*args)
    return error.value


def test_without_a_file_handle_it_is_to_be_asked_for_again(catalogue):
    with no_file_handle():
        found = [refused(catalogue.load, "one"), refused(catalogue.get, "two"), refused(catalogue.names)]
    for error in found:
        assert (error.status, error.code) == (503, "adapter_unreadable") and error.retry_after
        assert "Too many open files" in str(error) and str(catalogue.root) not in str(error)
    assert catalogue.load("one").entries and catalogue.names() == ["one", "two"]


def test_a_folder_that_lost_its_permission_hides_no_other(catalogue, monkeypatch):
    before = os.stat

    def stat(path, *args, **kwargs):
        if str(path).startswith(str(catalogue.root / "one") + os.sep):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return before(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    assert catalogue.names() == ["one", "two"] and catalogue.load("two").entries
    error = refused(catalogue.get, "one")
    assert error.status == 503 and "'one' cannot be read now: one/dts_config.json: Permission denied" in str(error)


def test_what_is_no_adapter_is_none(catalogue):
    (catalogue.root / "two" / "dts_model.safetensors").write_bytes(b"nothing")
    assert refused(catalogue.load, "two").status == 409
    shutil.rmtree(catalogue.root / "two")
    assert refused(catalogue.get, "two").status == 404


def test_a_task_that_is_read_again_says_what_the_machine_refused(catalogue):
    digest = catalogue.load("one").digest
    with (
        no_file_handle(),
        pytest.raises(OSError, match="one cannot be read again now: Too many open") as error,
    ):
        _read_again(catalogue.root / "one", digest)
    assert error.value.errno == errno.EMFILE and error.value.__cause__.filename
    with pytest.raises(ValueError, match="is not there any more as it was loaded"):
        _read_again(catalogue.root / "three", digest)
