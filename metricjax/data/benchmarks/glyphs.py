"""`glyphs`: letters of five scripts in twelve typefaces; needs no files, no network.

A class is a character, its category the script, and its images are one drawing in each
of the twelve DejaVu faces that come with matplotlib, each turned, scaled, sheared,
shifted and grained at random. Characters that any face draws alike (Latin A, Greek
Alpha, Cyrillic A) are one class, since nobody could tell them apart.
"""

import os
import unicodedata
from dataclasses import dataclass

import numpy as np

from metricjax.data import random_streams
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
    """Draws the data set: about 1,200 classes of 12 images, in a second or two.

    Half of the classes, drawn at random from the seed, are for training, the others
    for testing. Image (class, face) is a function of (seed, size, character, face)
    alone, the same on every machine with the same Pillow (its FreeType) and matplotlib
    (its faces).

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
            f"data.root is {root!r}, but the glyphs are drawn, not read: leave it "
            "unset or choose data.name=folder."
        )
    if not 8 <= size <= 256:
        raise InputError(f"Glyphs of size {size}: the side must be 8 to 256 pixels.")
    fonts = _load_faces(round(_LETTER_HEIGHT * size * _OVERSAMPLING))
    characters, letters = _draw_letters(fonts)
    images = _draw_all(characters, letters, size, seed)
    order = random_streams.stream(seed, random_streams.HALVES).permutation(
        len(characters)
    )
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
                f"{path} is missing: the glyphs are drawn with the faces that come "
                "with matplotlib from PyPI; reinstall it or choose data.name=folder."
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


def _draw_letters(fonts: list) -> tuple[list[str], list[list]]:
    """The distinct characters, and each one's drawing in every face.

    Of the characters that some face draws alike, only the first is kept.
    """
    from PIL import Image

    characters = _candidates(fonts)
    letters = [[] for _ in characters]
    parent = list(range(len(characters)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for font in fonts:
        first_drawn_so = {}
        for i, character in enumerate(characters):
            mask = font.getmask(character, mode="L")
            letter = Image.new("L", mask.size)
            letter.paste(mask, (0, 0, *mask.size))
            letters[i].append(letter)
            other = first_drawn_so.setdefault((mask.size, letter.tobytes()), i)
            a, b = sorted((find(i), find(other)))
            parent[b] = a
    distinct = [i for i in range(len(characters)) if find(i) == i]
    return [characters[i] for i in distinct], [letters[i] for i in distinct]


def _draw_all(
    characters: list[str], letters: list[list], size: int, seed: int
) -> np.ndarray:
    """Every character in every face: uint8 [characters * faces, size, size, 1]."""
    images = np.empty((len(characters), len(FACES), size, size), np.uint8)
    for c, character in enumerate(characters):
        rng = random_streams.stream(seed, random_streams.GLYPHS, ord(character))
        images[c] = _change(letters[c], size, rng)
    return images.reshape(-1, size, size, 1)


def _change(letters: list, size: int, rng: np.random.Generator) -> np.ndarray:
    """One character's drawings, each changed at random: uint8 [faces, size, size]."""
    from PIL import Image

    side = size * _OVERSAMPLING
    sizes = np.array([letter.size for letter in letters])
    coefficients = _inverse_affine(
        rng.uniform(-1.0, 1.0, (len(letters), 5)), sizes, side
    ).tolist()
    noise = rng.standard_normal((len(letters), size, size), np.float32)
    ink = np.empty(noise.shape, np.float32)
    for face, letter in enumerate(letters):
        changed = letter.transform(
            (side, side),
            Image.Transform.AFFINE,
            coefficients[face],
            Image.Resampling.BILINEAR,
        )
        ink[face] = changed.reduce(_OVERSAMPLING)
    return np.clip(255 - ink + np.float32(NOISE) * noise, 0, 255).astype(np.uint8)


def _inverse_affine(change: np.ndarray, sizes: np.ndarray, side: int) -> np.ndarray:
    """For each face six numbers that take a pixel of the image to one of the drawing.

    The drawing's centre goes to the image's centre plus the shift; about it the letter
    is sheared, rotated and scaled: p = factor * R(angle) @ [[1, shear], [0, 1]] @ q, so
    q = [[1, -shear], [0, 1]] @ R(-angle) @ p / factor.

    Args:
      change: [faces, 5] in [-1, 1]: rotation, scale, shear, shift in x and in y.
      sizes: [faces, 2], width and height of each drawing.
      side: of the image, in pixels of the drawing.

    Returns:
      [faces, 6], PIL's order.
    """
    angle = np.deg2rad(ROTATION) * change[:, 0]
    factor = (1.0 + SCALE) ** change[:, 1]
    shear = SHEAR * change[:, 2]
    cosine, sine = np.cos(angle) / factor, np.sin(angle) / factor
    a, b = cosine + shear * sine, sine - shear * cosine
    c, d = -sine, cosine
    x, y = (side / 2 + SHIFT * side * change[:, 3:5]).T
    x_offset = sizes[:, 0] / 2 - a * x - b * y
    y_offset = sizes[:, 1] / 2 - c * x - d * y
    return np.stack([a, b, x_offset, c, d, y_offset], axis=1)


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
