"""docs/vector-engines.md does what it says, and finds what our own search finds."""

import contextlib
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from paths import DOCS

from metricjax.inference import embed_to_file, gallery_index
from metricjax.inference.gallery_index import Index
from metricjax.inference.trained_model import TrainedModel

pytestmark = pytest.mark.usefixtures("quick")

PAGE = DOCS / "vector-engines.md"
pytest.importorskip("lancedb", reason="the extra `lancedb` is not installed")
pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")


@pytest.fixture(scope="module")
def trained(tiny):
    return TrainedModel.open(tiny.finished)


def test_the_page(tiny, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrainedModel, "open", lambda run: trained)
    shutil.copytree(tiny.shapes, "photos")
    broken = tmp_path / "photos" / "class00" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    shutil.copy("photos/class03/2.png", "query.png")
    shutil.copytree("photos/class05", "more")
    for source in ("photos", "more"):
        split = gallery_index.open_images(trained, source)
        out = Path("emb.parquet" if source == "photos" else "more.parquet")
        embed_to_file.write(trained, split, out)

    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert len(snippets) == 4
    names, printed = {}, []
    for snippet in snippets:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(snippet, names)
        printed.append(out.getvalue())

    gallery = Index.open(trained, "emb.parquet")
    query = names["query"][None]
    similarities, rows = gallery.nearest(query, 10)
    assert [row["path"] for row in names["found"]] == [
        gallery.split.names[row] for row in rows[0]
    ]
    distances = [1 - row["_distance"] for row in names["found"]]
    np.testing.assert_allclose(distances, similarities[0], atol=1e-5)
    assert "class03/2.png" in printed[1].splitlines()[0]
    labels = np.asarray(gallery.split.class_names)[gallery.split.labels]
    some = gallery.nearest(query, 3, among=labels == "class03")[1][0]
    assert printed[2] == f"{[gallery.split.names[row] for row in some]}\n"
    assert names["table"].count_rows() == 83 + 6 - 1
