"""queries.npz: what goes in comes out; what is damaged is told in a sentence."""

import io

import numpy as np
import pytest

from metricjax.comparison import per_query
from metricjax.data.datasets import Split
from metricjax.errors import InputError


def split_of(names, labels, **roles):
    classes = tuple(f"class {label}" for label in range(max(labels) + 1))
    return Split(labels, classes, names, reader=None, **roles)


TEST = split_of([f"data/c/{i}.png" for i in range(6)], [0, 0, 1, 1, 2, 2])
VALUES = {
    "query": np.array([0, 1, 3, 5]),
    "label": np.array([0, 0, 1, 2]),
    "recall@1": np.array([1.0, 0.5, 0.0, 1.0]),
    "map@r": np.array([0.25, 1 / 3, 0.0, 1.0]),
}


def test_what_goes_in_comes_out():
    packed = per_query.pack(VALUES, TEST)
    assert packed == per_query.pack(VALUES, TEST)
    arrays = per_query.unpack(packed, "there")
    for name, values in VALUES.items():
        np.testing.assert_array_equal(arrays[name], values.astype(arrays[name].dtype))
    assert set(per_query.metrics(arrays)) == {"recall@1", "map@r"}
    assert arrays["class_names"].tolist() == ["class 0", "class 1", "class 2"]
    assert str(arrays["test_sha256"]) == per_query.digest_of_images(TEST)


def test_the_digest_is_of_images_classes_and_roles_wherever_they_lie():
    names, labels = TEST.names, TEST.labels
    digest = per_query.digest_of_images(TEST)
    moved = split_of([f"/elsewhere/{name}" for name in names], labels)
    assert per_query.digest_of_images(moved) == digest
    others = (
        split_of(names[::-1], labels),
        split_of(names, [0, 0, 1, 1, 1, 2]),
        split_of(names, labels, is_query=np.arange(6) < 5),
    )
    assert len({digest, *map(per_query.digest_of_images, others)}) == 4


def test_what_is_no_such_file_is_refused():
    packed = per_query.pack(VALUES, TEST)
    pickled, empty = io.BytesIO(), io.BytesIO()
    np.savez(pickled, query=np.array([{}], object))
    np.savez(empty, query=np.arange(3))
    damaged = packed[:100] + bytes(20) + packed[120:]
    contents = (b"", b"text", packed[:200], damaged)
    for content in (*contents, pickled.getvalue(), empty.getvalue()):
        with pytest.raises(InputError, match="^run/queries.npz cannot be read .*again"):
            per_query.unpack(content, "run/queries.npz")
