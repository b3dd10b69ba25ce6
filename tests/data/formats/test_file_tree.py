"""Directories, .zip and .tar: the same files, whatever they lie in; damage is told."""

import gzip
import io
import os
import pickle
import tarfile
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from metricjax.data.formats.file_tree import absent, open_files
from metricjax.errors import InputError

CONTENTS = {
    "top.txt": b"top",
    "a/1.bin": b"one" * 1000,
    "a/empty.bin": b"",
    "a/b/c/deep.bin": os.urandom(5000),
    "ü/名前\nof two lines.bin": b"unicode",
    " a b/'quoted' \\ name.bin": b"odd",
    "a/.DS_Store": b"clutter",
    "__MACOSX/a/._1.bin": b"clutter",
    "a/Thumbs.db": b"clutter",
}
FILES = sorted(
    path
    for path in CONTENTS
    if not any(word in path for word in ("DS_Store", "MACOSX", "Thumbs"))
)
TARS = ("tar", "tar.gz", "tar.bz2", "tar.xz")


def make(kind, path, contents=CONTENTS):
    """The contents as a directory or an archive at `path`."""
    if kind == "directory":
        for name, content in contents.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:" + kind[4:]) as archive:
            for name, content in contents.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def refuse(path):
    with pytest.raises(InputError) as caught:
        open_files(str(path))
    assert repr(str(path)) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["directory", "zip", *TARS])
def test_the_same_files_from_everything(tmp_path, kind):
    # The name says nothing about the content.
    files = open_files(str(make(kind, tmp_path / "photos")))
    assert list(files.paths) == FILES
    for path in FILES:
        assert files.has(path)
        assert files.read(path) == CONTENTS[path]
        assert files.read(path, 4) == CONTENTS[path][:4]
    assert not files.has("a") and not files.has("a/b/1.bin")
    assert not files.has("a/.DS_Store")
    assert files.entries("") == ([" a b", "a", "ü"], ["top.txt"])
    assert files.entries("a") == files.entries("a/") == (["b"], ["1.bin", "empty.bin"])
    assert files.entries("a/b") == (["c"], [])
    assert files.entries("nowhere") == ([], [])
    assert absent(files, ["a/1.bin", "a/2.bin", "x/y", *FILES]) == ["a/2.bin", "x/y"]
    again = pickle.loads(pickle.dumps(files))
    assert again.read("a/1.bin") == CONTENTS["a/1.bin"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_many_threads_read_at_once(tmp_path, kind):
    rng = np.random.default_rng(0)
    contents = {f"{i}.bin": rng.bytes(2000 + i) for i in range(50)}
    files = open_files(str(make(kind, tmp_path / "x", contents)))
    wanted = [f"{i}.bin" for i in rng.integers(0, 50, 2000)]
    with ThreadPoolExecutor(8) as pool:
        for path, content in zip(wanted, pool.map(files.read, wanted), strict=True):
            assert content == contents[path]


@pytest.mark.parametrize("kind", ["directory", "zip", *TARS])
def test_nothing_is_written_beside_the_source(tmp_path, monkeypatch, kind):
    source, temporary = tmp_path / "source", tmp_path / "temporary"
    source.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    files = open_files(str(make(kind, source / "x")))
    before = sorted(source.rglob("*"))
    assert files.read("top.txt") == b"top"
    assert sorted(source.rglob("*")) == before
    # What is unpacked has no name, so that nothing remains even of a killed process.
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("kind", TARS)
def test_what_is_unpacked_is_said(tmp_path, kind):
    path = make(kind, tmp_path / "x.tar")
    notes = open_files(str(path)).notes
    assert len(notes) == (kind != "tar")
    if notes:
        assert str(path) in notes[0] and "metricjax.prepare" in notes[0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_no_room_to_unpack(tmp_path, monkeypatch):
    path = make("tar.gz", tmp_path / "x.tgz")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "w+b"))
    message = refuse(path)
    assert "No space left" in message and "TMPDIR" in message


def test_a_directory_is_not_walked_before_it_must(tmp_path, monkeypatch):
    root = make("directory", tmp_path / "x")
    files = open_files(str(root))
    with monkeypatch.context() as patch:
        patch.setattr(os, "walk", None)
        assert files.has("a/1.bin") and files.entries("a")[0] == ["b"]
        assert absent(files, FILES) == []
    assert list(files.paths) == FILES


def test_paths_that_lead_out_of_a_directory_are_absent(tmp_path):
    make("directory", tmp_path / "x")
    (tmp_path / "secret").write_text("no image")
    files = open_files(str(tmp_path / "x"))
    outside = ["../secret", "a/../../secret", str(tmp_path / "secret")]
    assert absent(files, outside) == outside


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("member", ["../evil", "/evil", "a/../../b", "C:\\b"])
def test_members_that_lead_out_are_refused(tmp_path, kind, member):
    path = make(kind, tmp_path / "x", CONTENTS | {member: b"boo"})
    message = refuse(path)
    assert repr(member) in message and "leads out of the archive" in message


def test_links_and_devices_in_a_tar_are_left_out(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (
            ("a/link", tarfile.SYMTYPE),
            ("a/hard", tarfile.LNKTYPE),
            ("a/device", tarfile.CHRTYPE),
            ("a", tarfile.DIRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("./a/1.bin")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"one"))
    files = open_files(str(path))
    assert list(files.paths) == ["a/1.bin"] and files.read("a/1.bin") == b"one"
    assert files.notes == (f"3 links or devices in {path} are not read.",)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_later_member_replaces_an_earlier_one(tmp_path, format):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=format) as archive:
        for content in (b"old", b"newer"):
            member = tarfile.TarInfo("a.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert open_files(str(path)).read("a.bin") == b"newer"


@pytest.mark.parametrize("kind", ["zip", *TARS])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_archives_cut_short(tmp_path, kind, share):
    path = make(kind, tmp_path / "x")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "damaged or not all there" in refuse(path)


def test_a_tar_cut_between_two_members(tmp_path):
    path = make("tar", tmp_path / "x.tar", {"a": b"1" * 512, "b": b"2" * 512})
    path.write_bytes(path.read_bytes()[:1024])
    assert "breaks off at byte 1,024" in refuse(path)


def test_a_tar_with_a_damaged_header(tmp_path):
    path = make("tar", tmp_path / "x.tar", {"a": b"1" * 512, "b": b"2" * 512})
    content = bytearray(path.read_bytes())
    content[1024 + 10] ^= 255
    path.write_bytes(content)
    assert "breaks off at byte 1,024" in refuse(path)


def test_a_compressed_tar_with_a_wrong_checksum(tmp_path):
    path = make("tar.gz", tmp_path / "x.tgz")
    content = bytearray(path.read_bytes())
    content[-8] ^= 255
    path.write_bytes(content)
    assert "CRC check failed" in refuse(path)


def test_a_tar_that_shrinks_later(tmp_path):
    path = make("tar", tmp_path / "x.tar", {"a": b"1" * 5000})
    files = open_files(str(path))
    os.truncate(path, 1000)
    with pytest.raises(OSError, match="cut short"):
        files.read("a")


@pytest.mark.parametrize("content", [b"", b"I am no archive", b"PK", bytes(2000)])
def test_what_is_no_archive(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    assert "neither a directory nor a .zip or .tar" in refuse(tmp_path / "x.tar")


def test_a_compressed_file_that_is_no_tar(tmp_path):

    (tmp_path / "x.gz").write_bytes(gzip.compress(b"a text" * 1000))
    assert "neither a directory nor a .zip or .tar" in refuse(tmp_path / "x.gz")
