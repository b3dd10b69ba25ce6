"""Files are written whole or not at all, also where the disk is full."""

import os

import pytest

from metricjax.errors import InputError
from metricjax.storage import atomic


def test_write_atomically(tmp_path):
    path = tmp_path / "a.json"
    atomic.write_atomically(path, "one — ü\n")
    assert path.read_text(encoding="utf-8") == "one — ü\n"
    atomic.write_atomically(path, "two\n")
    assert path.read_text() == "two\n"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("moment", ["write", "rename"])
@pytest.mark.parametrize("existed", [True, False])
def test_a_write_that_fails_leaves_nothing_half_written(
    tmp_path, monkeypatch, moment, existed
):
    path = tmp_path / "a.json"
    if existed:
        path.write_text("old")

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        if moment == "rename":
            patched.setattr(os, "replace", fail)
        text = "new" if moment == "rename" else "\ud800 cannot be encoded"
        with pytest.raises((OSError, UnicodeEncodeError)):
            atomic.write_atomically(path, text)
    assert os.listdir(tmp_path) == (["a.json"] if existed else [])
    assert not existed or path.read_text() == "old"


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="the disk is full") as caught:
        atomic.write_atomically(path, "new")
    assert str(path) in str(caught.value)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]
