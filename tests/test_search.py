"""`python -m metricjax.search`: tables, JSON, a page, and what is refused."""

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from metricjax import embed
from metricjax.data.collections import open_collection
from metricjax.errors import disk_errors
from metricjax.inference.partial_embeddings import PartialEmbeddings
from metricjax.inference.trained_model import TrainedModel
from metricjax.runtime import compilation_cache
from metricjax.search import USAGE, main

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def trained(tiny):
    return TrainedModel.open(tiny.finished)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def place(tiny, trained, cache, monkeypatch, tmp_path):
    """A directory with a gallery, `shapes`; the run is opened already."""
    monkeypatch.setattr(TrainedModel, "open", lambda run: trained)
    monkeypatch.setattr(compilation_cache, "enable", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").symlink_to(tiny.shapes)
    return tmp_path


def search(capsys, *arguments, code=0):
    """(what it prints, what it says besides)."""
    capsys.readouterr()
    assert main(["run", *map(str, arguments)]) == code
    return capsys.readouterr()


def refuse(capsys, *arguments):
    """The one sentence on stderr of a command line that is refused."""
    out, err = search(capsys, *arguments, code=2)
    lines = err.splitlines()
    assert out == "" and lines[-1].startswith("metricjax: ") and lines[-1][-1] == "."
    assert "Traceback" not in err
    return lines[-1]


def test_help(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == USAGE
    assert main([]) == 2
    assert all(len(line) <= 88 for line in USAGE.splitlines())


def test_an_image_finds_itself_first(place, trained, capsys):
    query = "shapes/class03/1.png"
    out, err = search(capsys, "--gallery", "shapes", query, "--top", 4)
    lines = out.splitlines()
    assert lines[0] == query and len(lines) == 5
    assert lines[1].split() == ["1", "1.0000", "class03", "class03/1.png"]
    split = open_collection(place / "shapes", channels=1)
    rows = trained.embed(split).embeddings
    own = split.names.index("class03/1.png")
    expected = np.sort(rows @ rows[own])[::-1][:4]
    found = [float(line.split()[1]) for line in lines[1:]]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    again = search(capsys, query, "--top", 4, "--gallery", "shapes")
    assert again.out == out and "Embedding" not in again.err


def test_folders_of_queries_and_json(place, capsys):
    queries = place / "queries"
    shutil.copytree(place / "shapes" / "class02", queries)
    (queries / "3.png").write_bytes((queries / "3.png").read_bytes()[:60])
    out, err = search(
        capsys, "--gallery", "shapes", "queries", "shapes/class05/0.png", "--json"
    )
    answers = json.loads(out)
    asked = [f"queries/{i}.png" for i in (0, 1, 2, 4, 5)]
    assert [a["query"] for a in answers] == [*asked, "shapes/class05/0.png"]
    assert "1 of 6 images cannot be decoded: '3.png' (" in err
    assert "they are not asked for." in err
    first = answers[-1]["neighbours"][0]
    assert first == {
        "rank": 1,
        "similarity": pytest.approx(1.0, abs=1e-5),
        "path": "class05/0.png",
        "class": "class05",
        "category": None,
    }
    assert all(len(answer["neighbours"]) == 10 for answer in answers)


def test_more_queries_than_a_batch(place, capsys):
    out, _ = search(capsys, "--gallery", "shapes", "shapes", "--top", 1)
    found = re.findall(r"^ +1 +1\.0000 +\S+ +(\S+)$", out, re.M)
    asked = re.findall(r"^shapes/(\S+)$", out, re.M)
    assert len(asked) == 84 and len(found) == 84
    assert np.mean([a == f for a, f in zip(asked, found, strict=True)]) > 0.9


def test_a_page_with_pictures(place, capsys):
    _, err = search(
        capsys, "--gallery", "shapes", "shapes/class01", "--top", 3, "--html", "a.html"
    )
    assert err.endswith("page: a.html\n")
    page = (place / "a.html").read_text()
    assert page.count('<article class="query"') == 6
    assert page.count("data:image/png;base64,") == 6 * 4
    assert "<h1>Nearest in shapes</h1>" in page and 'title="class01/0.png"' in page
    assert str(place) not in page and "<script" not in page


def test_a_category(place, capsys):
    table = ["path,label,category"]
    for label, category in ((1, "a"), (2, "b"), (3, "b")):
        table += [f"class0{label}/{i}.png,c{label},{category}" for i in range(6)]
    shutil.copytree(place / "shapes", place / "tabled")
    (place / "tabled" / "labels.csv").write_text("\n".join(table))
    arguments = ["--gallery", "tabled", "shapes/class01/0.png", "--category"]
    out, _ = search(capsys, *arguments, "b", "--top", 20)
    assert len(out.splitlines()) == 13 and "c1" not in out
    words = refuse(capsys, *arguments, "d")
    assert "has no category 'd', only a, b: choose one" in words
    arguments[1] = "shapes"
    assert "nor any other: choose one" in refuse(capsys, *arguments, "b")


def test_a_file_of_embeddings_as_gallery(place, capsys):
    assert embed.main(["run", "shapes", "--out", "emb.npz"]) == 0
    arguments = ["shapes/class04/2.png", "--top", 2, "--html", "a.html"]
    found = search(capsys, *arguments, "--gallery", "emb.npz")
    assert "class04/2.png" in found.out.splitlines()[1]
    page = (place / "a.html").read_text()
    assert page.count("no picture</p>") == 2 and page.count("data:image") == 1
    search(capsys, *arguments, "--gallery", "emb.npz", "--images", "shapes")
    page = (place / "a.html").read_text()
    assert "no picture</p>" not in page and page.count("data:image") == 3
    images = place / "few"
    shutil.copytree(place / "shapes" / "class04", images / "class04")
    search(capsys, *arguments, "--gallery", "emb.npz", "--images", "few")
    with np.load("emb.npz") as file:
        np.savez("other.npz", **{**file, "model": "another"})
    words = refuse(capsys, *arguments, "--gallery", "other.npz")
    assert "other.npz was made by another model ('another', and this run is" in words


def test_the_test_images_of_the_run(tiny, place, capsys, monkeypatch):
    monkeypatch.chdir(tiny.directory)
    out, _ = search(capsys, "shapes/class08/0.png", "--top", 100)
    assert len(out.splitlines()) == 43 and "class06" not in out


def test_approximately(place, capsys):
    pytest.importorskip("usearch", reason="the extra `approximate` is not installed")
    arguments = ["--gallery", "shapes", "shapes/class03/1.png", "--top", 5]
    exact, _ = search(capsys, *arguments)
    out, err = search(capsys, *arguments, "--approximate")
    assert "Making a graph of 84 images" in err
    (recall,) = re.findall(r"approximate: ([\d.]+) of the exact 5 nearest", err)
    assert float(recall) > 0.9 and out.splitlines()[1] == exact.splitlines()[1]
    again, err = search(capsys, *arguments, "--approximate")
    assert again == out and "Making a graph" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gallery", "shapes"], "No query is named"),
        (["--gallery", "shapes", "q.png"], "'q.png' does not exist"),
        (["--gallery", "nowhere", "ok.png"], "'nowhere' does not exist"),
        (["--gallery", "texts", "ok.png"], "There is no image in 'texts'"),
        (["--gallery", "shapes", "broken.png"], "None of the 1 images can be decoded"),
        (["--gallery", "shapes", "texts"], "There is no image in 'texts'"),
        (["--gallery", "shapes", "ok.png", "--top", "0"], "--top is 0: it must be"),
        (["--gallery", "shapes", "ok.png", "--top", "x"], "invalid int value"),
        (["--gallery", "shapes", "ok.png", "--html", "no/a.html"], "no such directory"),
        (["--gallery", "a.npz", "ok.png"], "a.npz does not exist"),
        (["--name", "cub", "ok.png"], "CUB-200-2011 ('cub') was looked for"),
        (
            ["--gallery", "shapes", "ok.png", "--approximate", "--category", "a"],
            "leave out --category",
        ),
    ],
)
def test_mistakes(place, capsys, arguments, words):
    (place / "texts").mkdir()
    (place / "texts" / "notes.txt").write_text("no image")
    Image.effect_noise((20, 20), 90).save(place / "ok.png")
    (place / "broken.png").write_bytes((place / "ok.png").read_bytes()[:80])
    assert words in refuse(capsys, *arguments)
    assert not list(place.glob("*.html"))


def test_a_gallery_that_may_not_be_written(place, capsys):
    shutil.copytree(place / "shapes" / "class01", place / "locked")
    (place / "locked").chmod(0o555)
    before = sorted((place / "locked").iterdir())
    out, _ = search(capsys, "--gallery", "locked", "shapes/class01/2.png", "--top", 1)
    assert "2.png" in out and sorted((place / "locked").iterdir()) == before


def test_names_of_any_letters(place, capsys):
    odd = place / "odd" / "a\nb"
    odd.mkdir(parents=True)
    for name in ("1\udcff.png", "\x1b[31m.png", "猫.png"):
        shutil.copy(place / "shapes" / "class01" / "0.png", odd / name)
    out, _ = search(capsys, "--gallery", "odd", odd, "--html", "a.html")
    lines = out.splitlines()
    assert len(lines) == 3 * 5 - 1 and all(line.isprintable() for line in lines)
    assert any(line.endswith("a�b/猫.png") for line in lines)
    assert (place / "a.html").read_bytes().decode("utf-8").count("data:image") == 12
    assert json.loads(search(capsys, "--gallery", "odd", odd, "--json").out)


def test_the_disk_gets_full(place, capsys, monkeypatch):
    """While the gallery is embedded: a sentence, and the next start goes on."""
    cut = PartialEmbeddings.append

    def append(self, embedded):
        if self.count == 32:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        cut(self, embedded)

    def full(self, embedded):
        with disk_errors(self.directory):
            append(self, embedded)

    arguments = ["--gallery", "shapes", "shapes/class01/0.png", "--index", "kept"]
    with monkeypatch.context() as patched:
        patched.setattr(PartialEmbeddings, "append", full)
        words = refuse(capsys, *arguments)
    assert "unfinished: the disk is full; free some space" in words
    assert "Resuming after 32 images." in search(capsys, *arguments).err
