"""What the pages of docs/ print is what their snippets print."""

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[1] / "docs"
# A snippet, and what it prints if it prints anything.
SNIPPET = re.compile(r"```python\n(.*?)```\n(?:```text\n(.*?)```\n)?", re.DOTALL)


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


def test_links_within_a_page_lead_somewhere():
    for page in PAGES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        there = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
        for target in re.findall(r"\]\(#([^)]*)\)", text):
            assert target in there, (page.name, target)
