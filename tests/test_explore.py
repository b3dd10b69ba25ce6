"""The explorer's page as a command: what it takes, says and refuses."""

import json
import re
import shutil

import exploring
import numpy as np
import pytest

from metricjax import explore
from metricjax.explorer import build, explorer_page, projections
from metricjax.inference.embedder import Embedded

pytestmark = pytest.mark.usefixtures("quick")


def facts(path) -> dict:
    """What the page knows."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r'id="facts">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


@pytest.fixture
def run(tiny, tmp_path, monkeypatch, capsys):
    """The command in a directory of its own: (exit code, what was printed)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments):
        code = explore.main([str(tiny.finished), *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_the_test_images_of_a_run(run, tiny, tmp_path):
    shutil.copytree(tiny.shapes, tmp_path / "shapes")
    code, said = run()
    assert code == 0 and said.endswith("42 images in explorer.html\n")
    known = facts(tmp_path / "explorer.html")
    assert known["total"] == 42 and len(known["classes"]) == 7
    results = json.loads((tiny.finished / "results.json").read_text())
    shown = f"Recall@1 <b>{100 * results['recall@1']:.1f}%</b>"
    assert shown in (tmp_path / "explorer.html").read_text()


def test_other_images_some_of_them_torn(run, tiny, tmp_path):
    shutil.copytree(tiny.shapes / "class02", tmp_path / "other/a")
    shutil.copytree(tiny.shapes / "class09", tmp_path / "other/b")
    torn = tmp_path / "other/b/3.png"
    torn.write_bytes(torn.read_bytes()[:90])
    code, said = run("other", "--out", "page.html")
    assert code == 0 and "b/3.png" in said
    known = facts(tmp_path / "page.html")
    assert known["title"] == "other" and known["classes"] == ["a", "b"]
    assert known["total"] == 12


def test_images_without_classes(run, tiny, tmp_path):
    shutil.copytree(tiny.shapes / "class02", tmp_path / "flat")
    code, said = run(tmp_path / "flat")
    assert code == 0
    assert "no right and wrong" in (tmp_path / "explorer.html").read_text()
    assert facts(tmp_path / "explorer.html")["arrays"]["queries"]["bytes"] == ""


def test_a_class_of_each_image(run, tiny, tmp_path):
    for name in ("class02", "class03", "class04"):
        (tmp_path / "single" / name).mkdir(parents=True)
        shutil.copy(tiny.shapes / name / "0.png", tmp_path / "single" / name)
    code, said = run("single")
    assert code == 0
    page = (tmp_path / "explorer.html").read_text()
    assert "No image has another one of its class" in page


def test_one_image_is_refused(run, tiny, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(tiny.shapes / "class02/0.png", tmp_path / "one")
    code, said = run("one")
    assert code == 2 and "two at least" in said
    assert not (tmp_path / "explorer.html").exists()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--out", "absent/page.html"], "a directory that exists"),
        (["--out", "."], "a directory that exists"),
        (["--threads", "0"], "--threads must be 1 or more"),
        (["--part", "middle"], "'middle'"),
        (["absent.zip"], "does not exist"),
        (["--tables"], "--tables"),
    ],
)
def test_mistakes_are_told_in_one_sentence(run, arguments, sentence):
    code, said = run(*arguments)
    assert code == 2 and sentence in said
    assert said.startswith("metricjax: ") and said.count("\n") == 1


def test_a_map_that_cannot_be_made_is_refused_first(run, monkeypatch):
    monkeypatch.setattr(projections.importlib.util, "find_spec", lambda name: None)
    code, said = run("--tsne")
    assert code == 2 and "scikit-learn" in said


def test_help_and_nothing(capsys):
    assert explore.main(["--help"]) == 0 and explore.main([]) == 2
    out = capsys.readouterr().out
    assert out == 2 * explore.USAGE


def test_queries_apart_from_the_gallery(tmp_path):
    apart = np.arange(30) % 2 == 0
    split = exploring.split(is_query=apart, is_gallery=~apart)
    embedded = exploring.embedded(split)
    per_query, notes = explorer_page.per_query_metrics(embedded, split)
    assert not notes and per_query["query"].tolist() == np.flatnonzero(apart).tolist()
    page = tmp_path / "explorer.html"
    explorer_page.write(page, embedded, split, per_query, title="x")
    found = build.explore(embedded, split, per_query)
    assert not apart[found.neighbors].any()
    np.testing.assert_array_equal(
        found.metrics["recall@1"], found.rank[found.queries] == 1
    )


@pytest.mark.parametrize("count", [2, 3])
def test_very_few_images(tmp_path, count):
    split = exploring.split(classes=2, images=2).subset(np.arange(count))
    embedded = exploring.embedded(split)
    per_query, notes = explorer_page.per_query_metrics(embedded, split)
    page = tmp_path / "explorer.html"
    explorer_page.write(page, embedded, split, per_query, title="x", notes=notes)
    assert facts(page)["total"] == count


def test_a_sample_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "MOST_IMAGES", 16)
    split = exploring.split(unreadable=range(3))
    embedded = exploring.embedded(split)
    values = exploring.per_query(split, embedded)
    page, ticks = tmp_path / "explorer.html", []
    explorer_page.write(
        page, embedded, split, values, title="x", progress=lambda *at: ticks.append(at)
    )
    assert "15 of 30 images" in page.read_text() and facts(page)["total"] == 15
    assert ticks == [(1, 1)]


def test_pictures_are_those_of_the_split(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        explorer_page.sprites,
        "sheets",
        lambda count, read, *_: [_seen(count, read, seen)],
    )
    split = exploring.split(unreadable=(4,))
    embedded = exploring.embedded(split)
    values = exploring.per_query(split, embedded)
    explorer_page.write(tmp_path / "a.html", embedded, split, values, title="x")
    assert [image is None for image in seen] == [n == 4 for n in range(30)]
    np.testing.assert_array_equal(seen[7], exploring.picture(7))


def _seen(count, read, seen):
    seen += [read(place) for place in range(count)]
    return b"", np.zeros((count, 2), np.uint8)


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    page = tmp_path / "explorer.html"
    page.write_text("old")
    split = exploring.split()
    rows = exploring.embedded(split).embeddings
    embedded = Embedded(rows, np.ones(30, bool))
    values = exploring.per_query(split, embedded)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(ValueError, match="the disk is full"):
        explorer_page.write(page, embedded, split, values, title="x")
    assert page.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
