"""Sheets of small pictures: each in its place, in its proportions."""

import io

import numpy as np
import pytest
from PIL import Image

from metricjax.reports import sprites


def opened(sheet):
    return np.asarray(Image.open(io.BytesIO(sheet[0])).convert("RGB"), np.int16)


def shade(index):
    return np.full((20, 10 + 10 * (index % 2), 1), 3 * index, np.uint8)


@pytest.mark.parametrize("threads", [1, 4])
def test_every_picture_lies_in_its_place(threads):
    found = list(sprites.sheets(70, shade, 64, threads))
    assert [len(sizes) for _, sizes in found] == [64, 6]
    assert opened(found[0]).shape == (160, 160, 3)
    assert opened(found[1]).shape == (20, 160, 3)
    for index in range(70):
        number, tile = divmod(index, 64)
        row, column = divmod(tile, 8)
        pixels, (width, height) = opened(found[number]), found[number][1][tile]
        assert (width, height) == (10 + 10 * (index % 2), 20)
        place = pixels[20 * row :, 20 * column :][4 : height - 4, 2 : width - 2]
        assert np.abs(place - 3 * index).max() <= 6


def test_large_pictures_shrink_in_proportion():
    large = np.zeros((50, 200, 3), np.uint8)
    ((content, sizes),) = sprites.sheets(1, lambda index: large, 48)
    assert sizes.tolist() == [[48, 12]]
    assert Image.open(io.BytesIO(content)).size == (8 * 48, 48)


def test_what_cannot_be_read_has_no_size():
    def read(index):
        return None if index != 1 else shade(index)

    ((_, sizes),) = sprites.sheets(3, read, 48)
    assert sizes.tolist() == [[0, 0], [20, 20], [0, 0]]
    ((content, sizes),) = sprites.sheets(2, lambda index: None, 48)
    assert Image.open(io.BytesIO(content)).size == (8, 1) and not sizes.any()


def test_the_more_pictures_the_smaller():
    sides = [sprites.side_for(count) for count in (1, 1501, 5001, 20_001, 10**7)]
    assert sides == [128, 96, 64, 48, 48]


def test_drawings_are_kept_as_they_are():
    rng = np.random.default_rng(0)

    def drawing(index):
        return 255 * rng.integers(0, 2, (4, 4, 1), np.uint8).repeat(5, 0).repeat(5, 1)

    images = [drawing(index) for index in range(9)]
    ((content, _),) = sprites.sheets(9, images.__getitem__, 64, threads=1)
    pixels = opened((content, None))
    for index, image in enumerate(images):
        row, column = divmod(index, 8)
        tile = pixels[20 * row : 20 * row + 20, 20 * column : 20 * column + 20]
        assert (tile == image).all()
