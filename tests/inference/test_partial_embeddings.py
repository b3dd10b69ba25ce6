"""Embeddings on disk as they come: whatever is cut off, what stands is whole."""

import os

import numpy as np
import pytest

from metricjax.inference.embedder import Embedded
from metricjax.inference.partial_embeddings import PartialEmbeddings

KEYS = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)


def block(start, count=4, width=8):
    rows = np.random.default_rng(start).standard_normal((count, width))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return Embedded(rows, np.arange(start, start + count) % 5 > 0)


@pytest.fixture
def growing(tmp_path):
    """Twelve of sixteen images."""
    growing = PartialEmbeddings.begin(tmp_path / "rows", "model", KEYS, 8)
    for start in (0, 4, 8):
        growing.append(block(start))
    return growing


def test_what_was_left_is_found(growing):
    found = PartialEmbeddings.load(growing.directory)
    assert (found.count, found.width, found.model) == (12, 8, "model")
    assert found.matches("model", KEYS)
    assert not found.matches("other", KEYS) and not found.matches("model", KEYS[:15])
    found.append(block(12))
    embedded = PartialEmbeddings.load(growing.directory).embedded
    rows = np.concatenate([block(s).embeddings for s in (0, 4, 8, 12)])
    valid = np.concatenate([block(s).valid for s in (0, 4, 8, 12)])
    np.testing.assert_array_equal(embedded.valid, valid)
    np.testing.assert_array_equal(embedded.embeddings, rows * valid[:, None])
    found.remove()
    assert not found.directory.exists()
    assert PartialEmbeddings.load(growing.directory) is None


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("embeddings.bin", 12 * 32 - 1, 11),
        ("embeddings.bin", 0, 0),
        ("valid.bin", 7, 7),
        ("valid.bin", 0, 0),
    ],
)
def test_what_is_cut_off_is_made_again(growing, name, size, count):
    os.truncate(growing.directory / name, size)
    found = PartialEmbeddings.load(growing.directory)
    assert found.count == count
    whole = count // 4 * 4
    found.truncate(whole)
    for start in range(whole, 16, 4):
        found.append(block(start))
    again = PartialEmbeddings.load(growing.directory)
    assert again.count == 16
    expected = block(12).embeddings * block(12).valid[:, None]
    np.testing.assert_array_equal(again.embedded.embeddings[12:], expected)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_rows_that_were_never_written(growing, value):
    """As a file system may leave them when the power fails."""
    rows = np.fromfile(growing.directory / "embeddings.bin", np.float32).reshape(12, 8)
    rows[9:] = value
    rows.tofile(growing.directory / "embeddings.bin")
    assert PartialEmbeddings.load(growing.directory).count == 9


def test_without_any_rows(tmp_path):
    growing = PartialEmbeddings.begin(tmp_path / "rows", "model", KEYS, 8)
    assert PartialEmbeddings.load(growing.directory).count == 0
    assert growing.embedded.embeddings.shape == (0, 8)


@pytest.mark.parametrize("name", ["request.json", "keys.bin"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]"])
def test_what_is_of_no_use(growing, name, content):
    path = growing.directory / name
    path.unlink() if content is None else path.write_bytes(content)
    assert PartialEmbeddings.load(growing.directory) is None
    again = PartialEmbeddings.begin(growing.directory, "model", KEYS, 8)
    assert PartialEmbeddings.load(again.directory).count == 0
