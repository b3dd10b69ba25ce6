"""The page of `python -m metricjax.serve`: one file, style and script inside."""

import base64
import dataclasses
import hashlib
import importlib.resources
import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from metricjax.reports.page import template

_SCRIPTS = ("elements.js", "pictures.js", "results.js", "main.js")


@dataclasses.dataclass(frozen=True)
class Page:
    """A page and what may happen in it.

    Attributes:
        text: HTML.
        policy: its content security policy: what stands in the page, by its digest,
            and answers and pictures of the same server; nothing else.
    """

    text: str
    policy: str


def render(
    *,
    title: str,
    images: int,
    classes: int,
    categories: Sequence[str],
    threshold: float | None,
    links: Mapping[str, str],
    max_bytes: int,
) -> Page:
    """The page.

    Args:
        title: what is searched.
        images: how many can be found.
        classes: of how many classes they are; 0 where they have none.
        categories: their names.
        threshold: similarity from which two images count as the same, or None.
        links: titles of other pages by their address.
        max_bytes: of a picture that may be sent.
    """
    folder = importlib.resources.files(__package__) / "serving_page"
    files = [folder / name for name in ("style.css", *_SCRIPTS)]
    style, *scripts = [file.read_text(encoding="utf-8") for file in files]
    text = template("serving_page/page.html").render(
        title=title,
        images=images,
        classes=classes,
        categories=categories,
        links=links,
        style=Markup(style),
        script=Markup('"use strict";\n' + "\n".join(scripts)),
        settings={
            "threshold": threshold,
            "maxBytes": max_bytes,
            "categories": len(categories),
        },
    )
    allowed = {
        "script-src": _digests("script", text),
        "style-src": _digests("style", text),
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
    }
    rules = "; ".join(f"{name} {value}" for name, value in allowed.items())
    policy = (
        f"default-src 'none'; {rules}; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return Page(text, policy)


def _digests(tag: str, text: str) -> str:
    """The sources of what stands in a page between some tags."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (hashlib.sha256(part.encode()).digest() for part in found)
    return " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in digests)
