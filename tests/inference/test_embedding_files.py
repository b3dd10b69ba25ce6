"""Files of embeddings: the same bytes, read by other programs, checked when read."""

import dataclasses
import zipfile

import numpy as np
import pytest

from metricjax.errors import InputError
from metricjax.inference import embedding_files, parquet
from metricjax.inference.vectors import Vectors

SUFFIXES = [".npz", ".parquet"]


def some(count=9, width=4, categories=True):
    """Of which row 2 is not valid; classes as a collection numbers them."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((count, width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    valid = np.arange(count) != 2
    rows[2] = 0
    labels = np.arange(count) % 3
    return Vectors(
        embeddings=rows,
        valid=valid,
        names=tuple(f"класс {c}/猫{i}.png" for i, c in enumerate(labels)),
        labels=labels,
        class_names=("", "b", "ж"),
        model="a1b2",
        images="c3",
        categories=labels // 2 if categories else None,
        category_names=("cold", "warm") if categories else (),
    )


def refuse(path):
    """The one sentence with which it is refused."""
    with pytest.raises(InputError) as caught:
        embedding_files.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("categories", [True, False])
def test_what_is_written_is_read(tmp_path, suffix, categories, monkeypatch):
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 64)
    made = some(categories=categories)
    for name in ("a", "b"):
        embedding_files.save(made, tmp_path / f"{name}{suffix}")
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1
    found = embedding_files.load(tmp_path / f"a{suffix}")
    for field in dataclasses.fields(made):
        expected, value = getattr(made, field.name), getattr(found, field.name)
        np.testing.assert_array_equal(value, expected, field.name)
    assert found.embeddings.dtype == np.float32
    split = found.split
    assert split.class_names[split.labels[4]] == "b" and len(split) == 9
    with pytest.raises(Exception, match="only its embedding is at hand"):
        split.read(0)


def test_numpy_alone_reads_it(tmp_path):
    embedding_files.save(some(), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file["embeddings"].shape == (9, 4) and file["embeddings"].dtype == "f4"
        assert file["names"].dtype.kind == "U" and file["names"][1] == "класс 1/猫1.png"
        assert file["class_names"][file["labels"]].tolist()[:3] == ["", "b", "ж"]
        assert file["valid"].dtype == bool and str(file["model"]) == "a1b2"


def test_arrow_reads_columns_of_plain_types(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import read_table

    embedding_files.save(some(), tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), 4)
    assert table["label"].to_pylist()[:3] == [None, "b", "ж"]
    assert table["category"].to_pylist()[:3] == ["cold", "cold", "warm"]
    assert table["embedding"].is_null().to_pylist() == [i == 2 for i in range(9)]
    np.testing.assert_array_equal(
        np.stack(table["embedding"].drop_null().to_pylist()),
        some().embeddings[some().valid],
    )


def test_names_that_are_no_text(tmp_path):
    odd = dataclasses.replace(some(), names=tuple(f"{i}\udcff" for i in range(9)))
    embedding_files.save(odd, tmp_path / "a.npz")
    assert embedding_files.load(tmp_path / "a.npz").names == odd.names
    embedding_files.save(odd, tmp_path / "a.parquet")
    assert embedding_files.load(tmp_path / "a.parquet").names[1] == "1\ufffd"


def change(path, **changes):
    """The file with other arrays; None takes one out."""
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})


def with_row(row, values):
    embeddings = some().embeddings.copy()
    embeddings[row] = values
    return embeddings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embeddings": with_row(4, np.nan)}, "NaN or Inf in 1 of 9 rows"),
        ({"embeddings": with_row(4, np.inf)}, "the first is row 4"),
        ({"embeddings": with_row(4, 2.0)}, "row 4 has length 4"),
        ({"embeddings": some().embeddings[:8]}, "8 embeddings, but 'names' has"),
        ({"embeddings": some().embeddings[0]}, "floats [images, numbers] are wanted"),
        ({"embeddings": np.eye(9, dtype=int)}, "are int64 of shape (9, 9)"),
        ({"labels": np.zeros(10, int)}, "9 embeddings, but 'labels' has the shape (10"),
        ({"labels": np.full(9, 3)}, "labels must be whole numbers from 0 to 2"),
        ({"labels": np.zeros(9)}, "labels must be whole numbers"),
        ({"categories": np.full(9, -1)}, "categories must be whole numbers"),
        ({"valid": np.zeros(9, bool)}, "holds no embedding of an image"),
        ({"names": None}, "does not hold 'names'"),
        ({"model": None}, "does not hold 'model'"),
        ({"names": np.array([{}] * 9)}, "it holds Python objects"),
    ],
)
def test_what_is_refused(tmp_path, changes, words):
    path = tmp_path / "a.npz"
    embedding_files.save(some(), path)
    change(path, **changes)
    assert words in refuse(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    assert "a" + suffix in refuse(path)
    embedding_files.save(some(), path)
    content = path.read_bytes()
    for wrong in (b"", b"no", content[:-40], content[: len(content) // 2]):
        path.write_bytes(wrong)
        assert "is damaged" in refuse(path)


def test_a_zip_of_anything(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("embeddings", "names", "model"):
            archive.writestr(name, b"no")
    assert "floats [images, numbers] are wanted" in refuse(path)


def test_a_table_of_other_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({"path": ["a"]}), tmp_path / "a.parquet")
    assert "is no .parquet of embeddings" in refuse(tmp_path / "a.parquet")


def test_what_little_is_needed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, embeddings=np.eye(3), names=["a", "b", "c"], model="m")
    found = embedding_files.load(path)
    assert found.valid.all() and found.class_names == ("",)
    assert found.embeddings.dtype == np.float32


def test_where_it_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        embedding_files.save(some(), tmp_path / "none" / "a.npz")
    with pytest.raises(InputError, match="neither .npz nor .parquet"):
        embedding_files.save(some(), tmp_path / "a.csv")


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'metricjax\[parquet\]'"):
        embedding_files.save(some(), tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())
