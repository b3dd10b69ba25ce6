"""Code blocks on the pages run and print what the page says; links and names exist."""

import contextlib
import io
import re

import pytest
from paths import ROOT

from metricjax.__main__ import COMMANDS
from metricjax.config import default_config, terms
from metricjax.models import embedder
from metricjax.objectives import registry

PAGES = ROOT / "docs"
# A snippet, and what it prints if it prints anything.
SNIPPET = re.compile(r"```python\n(.*?)```\n(?:```text\n(.*?)```\n)?", re.DOTALL)


def pages():
    """Every page of the repository."""
    folders = (ROOT, PAGES, ROOT / "configs", ROOT / "launch", ROOT / "benchmarks")
    found = [page for folder in folders for page in sorted(folder.glob("*.md"))]
    return found + sorted((ROOT / "benchmarks" / "results").rglob("*.md"))


@pytest.mark.parametrize("page", ["how-evaluators-fail.md"])
def test_snippets_print_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (PAGES / page).read_text(encoding="utf-8")
    snippets = SNIPPET.findall(text)
    assert len(snippets) == text.count("```python") > 10
    assert sum(bool(said) for _, said in snippets) == text.count("```text")
    namespace = {}
    for code, said in snippets:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), namespace)
        assert printed.getvalue() == said, code


def test_the_examples_of_contributing_run():
    """In page order, in one session; registered names are removed at the end."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    snippets = [code for code, _ in SNIPPET.findall(text)]
    assert len(snippets) == 5
    namespace = {}
    try:
        for code in snippets:
            exec(compile(code, "CONTRIBUTING.md", "exec"), namespace)
        assert terms(mean_gap={})["mean_gap"]["margin"] == 0.5
    finally:
        registry.LOSSES.pop("mean_gap", None)
        embedder.BACKBONES.pop("two_blocks", None)


def anchors(text):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def texts():
    """(page, text) of every page."""
    found = [(page, page.read_text(encoding="utf-8")) for page in pages()]
    assert len(found) > 20
    return found


def test_links_lead_somewhere():
    for page, text in texts():
        for target in re.findall(r"\]\(([^)]*)\)", text):
            if target.startswith("https://"):
                continue
            file, _, anchor = target.partition("#")
            place = (page.parent / file) if file else page
            assert place.exists(), (page, target)
            if anchor:
                assert anchor in anchors(place.read_text(encoding="utf-8")), (
                    page,
                    target,
                )


def test_files_and_modules_that_are_named_exist():
    for page, text in texts():
        files = re.findall(
            r"\b((?:configs|tests|launch|benchmarks|docs)/[\w/.-]*\.\w+)", text
        )
        modules = re.findall(r"python3? -m (metricjax\.[a-z]+)", text)
        for name in files:
            assert (ROOT / name).exists(), (page, name)
        for name in modules:
            assert (ROOT / f"{name.replace('.', '/')}.py").exists(), (page, name)
        blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
        commands = re.findall(r"^(?:\S*/)?metricjax ([a-z]+)", blocks, re.MULTILINE)
        commands += re.findall(r"`metricjax ([a-z]+)", text)
        for name in commands:
            assert name in COMMANDS, (page, name)


def test_settings_that_are_named_exist():
    settings = default_config()
    for page, text in texts():
        for name in re.findall(r"--config\.([a-z_][\w.]*)", text):
            value = settings
            for part in name.split("."):
                if not value:  # terms, whose names are a config's own
                    break
                assert part in value, (page, name)
                value = value[part]
