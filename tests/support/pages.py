"""What tests of HTML pages share: hostile names, pictures, every element."""

import html.parser

import numpy as np

HOSTILE = "\"><script>alert('x')</script>"


def noise(index, side=32, channels=1):
    generator = np.random.default_rng(index)
    return generator.integers(0, 256, (side, side, channels), np.uint8)


class Elements(html.parser.HTMLParser):
    """Every element with its attributes, and a check that elements nest."""

    VOID = {"img", "meta", "br", "wbr", "link", "input", "hr"}

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
