"""Thumbnails: exact where small, bounded where large."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from metricjax.reports import thumbnails


def decode(thumbnail):
    content = thumbnail.uri.split("base64,")[1]
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_small_images_are_kept_exactly(channels, mode):
    image = np.random.default_rng(0).integers(0, 256, (32, 20, channels), np.uint8)
    thumbnail = thumbnails.thumbnail(image)
    picture = decode(thumbnail)
    assert picture.mode == mode and picture.format == "PNG" and thumbnail.pixelated
    np.testing.assert_array_equal(np.asarray(picture).reshape(image.shape), image)


def test_photos_shrink_in_proportion():
    image = np.random.default_rng(0).integers(0, 256, (300, 600, 3), np.uint8)
    thumbnail = thumbnails.thumbnail(image)
    assert decode(thumbnail).size == (128, 64) == (thumbnail.width, thumbnail.height)
    assert decode(thumbnail).format == "WEBP" and not thumbnail.pixelated


def test_a_drawing_becomes_png_where_that_is_smaller():
    image = np.zeros((105, 105, 1), np.uint8)
    image[::9] = image[:, ::9] = 255
    assert decode(thumbnails.thumbnail(image)).format == "PNG"


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)],
)
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        thumbnails.thumbnail(image)
