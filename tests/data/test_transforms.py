"""Prepare, augment, normalise and flip."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax.data import transforms
from metricjax.data.transforms import TransformConfig
from metricjax.errors import InputError


def picture(height, width, channels, seed=0):
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("recipe", transforms.RECIPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(64, 48), (20, 31), (32, 32)])
def test_shapes_and_purity(recipe, channels, shape):
    config = TransformConfig(recipe, image_size=32, channels=channels)
    transform = transforms.build(config)
    image = picture(*shape, channels)
    prepared = transform.prepare_train(image)
    side = 36 if recipe == "resize_crop" else 32
    assert prepared.shape == (side, side, channels) and prepared.dtype == np.uint8
    before = prepared.copy()
    first = transform.augment(prepared, np.random.default_rng(3))
    again = transform.augment(prepared, np.random.default_rng(3))
    assert first.shape == (32, 32, channels) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(prepared, before)
    assert transform.prepare_test(image).shape == (32, 32, channels)
    other = transform.augment(prepared, np.random.default_rng(4))
    assert (first != other).any() == (recipe != "none")


def test_cgd_sizes():
    transform = transforms.build(TransformConfig("resize_crop", 224, 3))
    assert transform.prepare_train(picture(300, 500, 3)).shape == (252, 252, 3)


def test_shrinking_is_antialiased():
    """A one-pixel checkerboard becomes grey, not black or white or a moiré."""
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None]
    small = transforms.resize(board, 32)
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_crops_reach_every_place_and_keep_pixels():
    transform = transforms.build(TransformConfig("resize_crop", 16, 1))
    prepared = np.arange(18 * 18, dtype=np.uint16).reshape(18, 18, 1)
    rng = np.random.default_rng(0)
    corners = {int(transform.augment(prepared, rng)[0, 0, 0]) for _ in range(300)}
    assert corners == {18 * top + left for top in range(3) for left in range(3)}


def still(**strengths):
    zero = dict(rotation=0.0, scale=0.0, stretch=0.0, shear=0.0, shift=0.0)
    return TransformConfig("affine", 33, 1, **(zero | strengths))


def test_affine_of_no_strength_is_the_identity():
    image = picture(33, 33, 1)
    result = transforms.build(still()).augment(image, np.random.default_rng(0))
    np.testing.assert_array_equal(result, image)


def moments(image):
    """Centre and second moments of the ink of a white drawing."""
    ink = 255.0 - image[:, :, 0].astype(float)
    y, x = np.indices(ink.shape)
    total = ink.sum()
    centre = np.array([(ink * x).sum(), (ink * y).sum()]) / total
    dx, dy = x - centre[0], y - centre[1]
    second = [(ink * dx * dx).sum(), (ink * dy * dy).sum(), (ink * dx * dy).sum()]
    return centre, np.array(second) / total


def bar():
    image = np.full((33, 33, 1), 255, np.uint8)
    image[15:18, 8:25] = 0
    return image


def test_affine_strengths_mean_what_they_say():
    centre, second = moments(bar())
    angles, factors, shifts = [], [], []
    for seed in range(200):
        rng = np.random.default_rng
        turned = transforms.build(still(rotation=20.0)).augment(bar(), rng(seed))
        _, (xx, yy, xy) = moments(turned)
        angles.append(np.degrees(0.5 * np.arctan2(2 * xy, xx - yy)))
        scaled = transforms.build(still(scale=0.25)).augment(bar(), rng(seed))
        factors.append(np.sqrt(moments(scaled)[1][0] / second[0]))
        shifted = transforms.build(still(shift=0.1)).augment(bar(), rng(seed))
        shifts.append(moments(shifted)[0] - centre)
    assert -20.5 < min(angles) < -17 and 17 < max(angles) < 20.5
    assert 0.78 < min(factors) < 0.84 and 1.19 < max(factors) < 1.27
    assert np.abs(shifts).max() == pytest.approx(3.3, abs=0.2)
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.5


def test_affine_stretch_trades_width_for_height():
    square = np.full((33, 33, 1), 255, np.uint8)
    square[11:22, 11:22] = 0
    _, before = moments(square)
    widths = []
    for seed in range(100):
        transform = transforms.build(still(stretch=0.25))
        _, after = moments(transform.augment(square, np.random.default_rng(seed)))
        width, height = np.sqrt(after[:2] / before[:2])
        assert width * height == pytest.approx(1.0, abs=0.05)
        widths.append(width)
    assert 0.77 < min(widths) < 0.85 and 1.19 < max(widths) < 1.29


@pytest.mark.parametrize("channels", [1, 3])
def test_outside_has_the_colour_of_the_border(channels):
    colour = np.array([200, 30, 90], np.uint8)[:channels]
    image = np.broadcast_to(colour, (33, 33, channels)).copy()
    config = TransformConfig("affine", 33, channels, rotation=45.0, shift=0.3)
    for seed in range(5):
        result = transforms.build(config).augment(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(result, image)


def test_normalise():
    images = picture(4, 4, 3)[None]
    photo = transforms.normalize(jnp.asarray(images), TransformConfig("resize_crop"))
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    np.testing.assert_allclose(photo, (images / 255 - mean) / deviation, atol=1e-5)
    assert photo.dtype == jnp.float32
    for recipe in ("affine", "none"):
        plain = transforms.normalize(jnp.asarray(images), TransformConfig(recipe))
        np.testing.assert_allclose(plain, images / 127.5 - 1, atol=1e-6)
    grey = TransformConfig("resize_crop", channels=1)
    result = transforms.normalize(jnp.asarray(images[..., :1]), grey)
    np.testing.assert_allclose(result, (images[..., :1] / 255 - 0.449) / 0.226, 1e-4)


def test_flip_mirrors_half_of_the_images_and_only_where_wanted():
    images = jnp.asarray(np.stack([picture(3, 5, 1, seed) for seed in range(400)]))
    key = jax.random.key(0)
    config = TransformConfig("resize_crop")
    result = np.asarray(
        jax.jit(transforms.random_flip, static_argnums=2)(images, key, config)
    )
    kept = (result == images).all((1, 2, 3))
    mirrored = (result == images[:, :, ::-1]).all((1, 2, 3))
    assert (np.asarray(kept) ^ np.asarray(mirrored)).all()
    assert 150 < int(kept.sum()) < 250
    for still_config in (TransformConfig("affine"), TransformConfig(flip=False)):
        assert transforms.random_flip(images, key, still_config) is images
    assert TransformConfig("affine", flip=True).flips


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(recipe="affin"), "affin.*choose one of"),
        (dict(image_size=0), "image_size is 0"),
        (dict(channels=4), "channels is 4"),
        (dict(shear=-0.1), "shear is -0.1"),
    ],
)
def test_bad_settings_are_told_in_a_sentence(settings, words):
    with pytest.raises(InputError, match=words):
        TransformConfig(**settings)


def test_augmenting_a_small_image_is_cheap():
    """40 microseconds were measured on a busy core; ten times that is a fault."""
    transform = transforms.build(TransformConfig("affine", 32, 1))
    image, rng = picture(32, 32, 1), np.random.default_rng(0)
    started = time.process_time()
    for _ in range(500):
        transform.augment(image, rng)
    assert (time.process_time() - started) / 500 < 400e-6
