"""Files of a bucket: patience, and sentences for what no patience mends."""

import logging

import pytest

from metricjax.errors import InputError
from metricjax.storage import bucket

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def files(monkeypatch):
    """A store in memory, and what fsspec has of it."""
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(bucket, "_WAITS", (0.0, 0.0))
    yield bucket.BucketFiles("memory://tests/run/"), memory
    if memory.exists("/tests"):
        memory.rm("/tests", recursive=True)


def test_what_is_written_is_found_read_and_removed(files, tmp_path):
    remote, memory = files
    assert remote.find("") == [] and remote.read("a.json") is None
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "b").write_bytes(b"b")
    (tmp_path / "in" / "deep" / "c").write_bytes(b"")
    remote.write("a.json", b"{}")
    remote.put(tmp_path / "in", ["b", "deep/c"])
    assert remote.find("") == ["a.json", "b", "deep/c"]
    assert remote.find("deep") == ["deep/c"] and remote.find("nowhere") == []
    assert memory.cat_file("/tests/run/b") == b"b"
    remote.get(["b", "deep/c"], tmp_path / "out")
    assert (tmp_path / "out" / "b").read_bytes() == b"b"
    assert (tmp_path / "out" / "deep" / "c").read_bytes() == b""
    remote.remove(["b", "b", "nowhere"])
    assert remote.find("") == ["a.json", "deep/c"] and remote.read("a.json") == b"{}"


def test_what_a_client_warns_of_at_every_call_is_left_out(files, caplog):
    logger = logging.getLogger("gcsfs")
    logger.warning("Could not determine bucket type")
    logger.error("no such bucket")
    assert [record.message for record in caplog.records] == ["no such bucket"]


def failing(error, times):
    """A call that raises so often, and a list of the calls."""
    calls = []

    def call(*_, **__):
        calls.append(1)
        if len(calls) <= times:
            raise error

    return call, calls


@pytest.mark.parametrize("patient", [True, False])
def test_what_passes_is_tried_again(files, monkeypatch, patient):
    remote, memory = files
    remote = bucket.BucketFiles(remote.address, patient)
    call, calls = failing(ConnectionError("reset by peer"), 2)
    monkeypatch.setattr(memory, "pipe_file", call)
    if patient:
        remote.write("a", b"")
        assert len(calls) == 3
    else:
        with pytest.raises(InputError, match="reset by peer"):
            remote.write("a", b"")
        assert len(calls) == 1


@pytest.mark.parametrize(
    ("error", "tries", "words"),
    [
        (
            TimeoutError(),
            3,
            "(TimeoutError): check that this machine",
        ),
        (ConnectionError("no\nroute"), 3, "(no route): check that this machine"),
        (OSError("Forbidden: o/b\nnot you"), 1, "not you): let this machine's account"),
        (PermissionError("x"), 1, "gcloud auth application-default login"),
        (RuntimeError("Anonymous caller, 401"), 1, "or log in"),
        (FileNotFoundError("b/run"), 1, "does the bucket exist?"),
        (NotImplementedError(), 1, "choose another --workdir"),
    ],
)
def test_what_does_not_pass_is_a_sentence(files, monkeypatch, error, tries, words):
    remote, memory = files
    call, calls = failing(error, 9)
    monkeypatch.setattr(memory, "pipe_file", call)
    with pytest.raises(InputError) as caught:
        remote.write("a", b"")
    message = str(caught.value)
    assert message.startswith("--workdir memory://tests/run cannot be used (")
    assert words in message and "\n" not in message and message.endswith(".")
    assert len(calls) == tries


def test_a_full_disk_is_not_taken_for_the_bucket(files, monkeypatch, tmp_path):
    remote, memory = files
    call, calls = failing(OSError(28, "No space left on device"), 9)
    monkeypatch.setattr(memory, "get_file", call)
    with pytest.raises(InputError, match="the disk is full"):
        remote.get(["a"], tmp_path)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("memory://", "names no bucket"),
        ("nosuch://bucket/run", "Protocol not known: nosuch"),
    ],
)
def test_an_address_that_is_none(address, words):
    with pytest.raises(InputError, match=words) as caught:
        bucket.BucketFiles(address)
    assert address in str(caught.value)
