"""`glyphs`: letters of five scripts in twelve typefaces; needs no files, no network.

A class is a character, its category the script, and its images are one drawing in each
of the twelve DejaVu faces that come with matplotlib, each turned, scaled, sheared,
shifted and grained at random. Characters that any face draws alike (Latin A, Greek
Alpha, Cyrillic A) are one class, since nobody could tell them apart.
"""

import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from metricjax.data import streams
from metricjax.data.datasets import Dataset, Split
from metricjax.errors import InputError

FACES = tuple(
    family + style
    for family, styles in (
        ("DejaVuSans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("DejaVuSansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("DejaVuSerif", ("", "-Bold", "-Italic", "-BoldItalic")),
    )
    for style in styles
)
SCRIPTS = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN")

# The strengths of the random change of one drawing.
ROTATION = 25.0  # degrees, either way
SCALE = 0.15  # factor in [1 / 1.15, 1.15]
SHEAR = 0.2  # x per y, either way
SHIFT = 0.08  # share of the side, either way
NOISE = 12.0  # standard deviation, of 255

_OVERSAMPLING = 2  # drawn this many times larger, then averaged down
_LETTER_HEIGHT = 0.72  # point size of the face as a share of the side


def open(root: str | None = None, *, size: int = 32, seed: int = 0) -> Dataset:
    """Draws the data set: about 1,240 classes of 12 images, in about a second.

    Half of the classes, drawn at random from the seed, are for training, the other half
    for testing. Image (class, face) is a function of (seed, size, character, face) alone;
    it is the same on every machine with the same versions of Pillow's FreeType and of
    matplotlib's faces.

    Args:
      root: not used; None.
      size: the side of the square images in pixels, 8 to 256.
      seed: of the halves and of every image's change.

    Returns:
      A data set of uint8 [size, size, 1] images, dark letters on white.

    Raises:
      InputError: a root is given, the size is out of range, or a face is missing.
    """
    if root is not None:
        raise InputError(
            f"data.root is {root!r}, but the glyphs are drawn, not read: leave it unset "
            "or choose data.name=folder."
        )
    if not 8 <= size <= 256:
        raise InputError(f"Glyphs of size {size}: the side must be 8 to 256 pixels.")
    fonts = _load_faces(round(_LETTER_HEIGHT * size * _OVERSAMPLING))
    characters = _distinct_characters(fonts)
    images = _draw_all(characters, fonts, size, seed)
    order = streams.stream(seed, streams.HALVES).permutation(len(characters))
    half = (len(characters) + 1) // 2
    train = _split(characters, images, np.sort(order[:half]))
    test = _split(characters, images, np.sort(order[half:]))
    note = (
        f"Glyphs: {len(characters)} letters of {len(SCRIPTS)} scripts, "
        f"{len(FACES)} faces each; {train.num_classes} classes to train on, "
        f"{test.num_classes} others to test on."
    )
    return Dataset("glyphs", train, test, notes=(note,))


def _load_faces(points: int) -> list:
    import matplotlib
    from PIL import ImageFont

    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = []
    for face in FACES:
        path = os.path.join(folder, face + ".ttf")
        if not os.path.exists(path):
            raise InputError(
                f"{path} is missing: the glyphs are drawn with the faces that come with "
                "matplotlib from PyPI; reinstall it or choose data.name=folder."
            )
        # The basic layout, because the other depends on an optional library.
        fonts.append(
            ImageFont.truetype(path, points, layout_engine=ImageFont.Layout.BASIC)
        )
    return fonts


def _candidates(fonts: list) -> list[str]:
    """Letters of the five scripts that every face has, in order of code point."""
    from matplotlib import ft2font

    charmaps = [set(ft2font.FT2Font(font.path).get_charmap()) for font in fonts]
    return [
        chr(code)
        for code in sorted(set.intersection(*charmaps))
        if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt", "Lo")
        and _script(chr(code)) in SCRIPTS
    ]


def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0]


def _mask(font, character: str) -> tuple[bytes, tuple[int, int]]:
    mask = font.getmask(character, mode="L")
    return bytes(mask), mask.size


def _distinct_characters(fonts: list) -> list[str]:
    """One character for each set of those that some face draws alike: the first."""
    candidates = _candidates(fonts)
    parent = list(range(len(candidates)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for font in fonts:
        first_drawn_so = {}
        for i, character in enumerate(candidates):
            other = first_drawn_so.setdefault(_mask(font, character), i)
            a, b = sorted((find(i), find(other)))
            parent[b] = a
    return [c for i, c in enumerate(candidates) if find(i) == i]


def _draw_all(characters: list[str], fonts: list, size: int, seed: int) -> np.ndarray:
    """Every character in every face: uint8 [characters * faces, size, size, 1]."""
    images = np.empty((len(characters), len(fonts), size, size), np.uint8)

    def draw(c: int) -> None:
        images[c] = _draw_character(characters[c], fonts, size, seed)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(draw, range(len(characters))))
    return images.reshape(-1, size, size, 1)


def _draw_character(character: str, fonts: list, size: int, seed: int) -> np.ndarray:
    """One character in every face: uint8 [faces, size, size]."""
    from PIL import Image

    rng = streams.stream(seed, streams.GLYPHS, ord(character))
    changes = rng.uniform(-1.0, 1.0, (len(fonts), 5))
    noise = rng.standard_normal((len(fonts), size, size), np.float32)
    side = size * _OVERSAMPLING
    drawings = np.empty((len(fonts), size, size), np.uint8)
    for face, font in enumerate(fonts):
        letter, offset = font.getmask2(character, mode="L")
        width, height = letter.size
        # One pixel of margin, so that the edge of the letter is blended, not cut.
        drawing = Image.new("L", (width + 2, height + 2))
        drawing.im.paste(letter, (1, 1, width + 1, height + 1))
        coefficients = _inverse_affine(changes[face], drawing.size, side)
        drawing = drawing.transform(
            (side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
        )
        drawings[face] = np.asarray(drawing.reduce(_OVERSAMPLING))
    return np.clip(255.0 - drawings + NOISE * noise, 0.0, 255.0).astype(np.uint8)


def _inverse_affine(
    change: np.ndarray, source: tuple[int, int], side: int
) -> tuple[float, ...]:
    """Six numbers that take a pixel of the image to one of the drawing.

    The drawing's centre goes to the image's centre plus the shift; about it the letter
    is scaled, sheared and rotated: p = R(angle) @ [[1, shear], [0, 1]] * factor @ q.
    """
    angle = np.deg2rad(ROTATION * change[0])
    factor = (1.0 + SCALE) ** change[1]
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    forward = factor * rotation @ np.array([[1.0, SHEAR * change[2]], [0.0, 1.0]])
    inverse = np.linalg.inv(forward)
    centre = side / 2 + SHIFT * side * change[3:5]
    offset = np.array(source) / 2 - inverse @ centre
    return (*inverse[0], offset[0], *inverse[1], offset[1])


@dataclass(frozen=True)
class _Rows:
    """Reads image i of a split: row `rows[i]` of all images."""

    images: np.ndarray
    rows: np.ndarray

    def __call__(self, index: int) -> np.ndarray:
        return self.images[self.rows[index]]


def _split(characters: list[str], images: np.ndarray, classes: np.ndarray) -> Split:
    faces = len(FACES)
    rows = (classes[:, None] * faces + np.arange(faces)).reshape(-1)
    class_names = [
        f"{characters[c]} {unicodedata.name(characters[c])}" for c in classes
    ]
    names = tuple(f"{name}, {face}" for name in class_names for face in FACES)
    scripts = np.array([SCRIPTS.index(_script(characters[c])) for c in classes])
    present, categories = np.unique(scripts, return_inverse=True)
    return Split(
        labels=np.repeat(np.arange(len(classes)), faces),
        class_names=tuple(class_names),
        names=names,
        reader=_Rows(images, rows),
        categories=np.repeat(categories, faces),
        category_names=tuple(SCRIPTS[s].capitalize() for s in present),
    )
