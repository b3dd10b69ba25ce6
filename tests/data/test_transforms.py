"""Prepare, augment, normalise and flip."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax.data import transforms
from metricjax.data.geometry import random_box
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
    assert prepared.shape[2] == channels and prepared.dtype == np.uint8
    before = prepared.copy()
    first = transform.augment(prepared, np.random.default_rng(3))
    again = transform.augment(prepared, np.random.default_rng(3))
    assert first.shape == (32, 32, channels) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(prepared, before)
    assert transform.prepare_test(image).shape == (32, 32, channels)
    other = transform.augment(prepared, np.random.default_rng(4))
    assert (first != other).any() == (recipe != "none")


@pytest.mark.parametrize("recipe", transforms.RECIPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (900, 2), (33, 31)])
def test_images_of_any_shape(recipe, channels, shape):
    """One colour stays it, but for the padding."""
    image = np.full((*shape, channels), 77, np.uint8)
    transform = transforms.build(TransformConfig(recipe, 32, channels))
    prepared = transform.prepare_train(image)
    assert prepared.size < 100_000
    for result in (
        transform.prepare_test(image),
        *(transform.augment(prepared, np.random.default_rng(i)) for i in range(4)),
    ):
        assert result.shape == (32, 32, channels) and result.dtype == np.uint8
        colours = {tuple(colour) for colour in result.reshape(-1, channels).tolist()}
        allowed = {(77,) * channels}
        if recipe == "pad_crop":
            allowed.add((124, 117, 104) if channels == 3 else (115,))
        assert colours <= allowed


@pytest.mark.parametrize(
    ("recipe", "size", "shape"),
    [
        ("resize_crop", 224, (252, 252)),
        ("resize_or_crop", 227, (255, 255 + 227)),
        ("pad_crop", 224, (256, 256)),
        ("random_resized_crop", 224, (512, 1024)),
        ("random_resized_crop", 600, (650, 1300)),
    ],
)
def test_sizes_that_are_kept(recipe, size, shape):
    transform = transforms.build(TransformConfig(recipe, size, 3))
    assert transform.prepare_train(picture(650, 1300, 3)).shape == (*shape, 3)


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


def test_resized_or_cropped_with_equal_chances():
    transform = transforms.build(TransformConfig("resize_or_crop", 16, 3))
    image = picture(40, 30, 3)
    prepared = transform.prepare_train(image)
    whole, larger = transforms.resize(image, 16), transforms.resize(image, 18)
    crops = {
        larger[top : top + 16, left : left + 16].tobytes()
        for top in range(3)
        for left in range(3)
    }
    rng, met, wholes = np.random.default_rng(0), set(), 0
    for _ in range(400):
        result = transform.augment(prepared, rng)
        if np.array_equal(result, whole):
            wholes += 1
        else:
            met.add(result.tobytes())
    assert met == crops
    assert 150 < wholes < 250
    np.testing.assert_array_equal(transform.prepare_test(image), whole)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((60, 30), (0, 37), (9, 27)),
        ((15, 45), (12, 24), (0, 37)),
        ((37, 37), (0, 37), (0, 37)),
        ((400, 1), (0, 37), (18, 19)),
    ],
)
def test_padding(shape, rows, columns):
    """The image in proportion in the middle, the mean colour around it."""
    transform = transforms.build(TransformConfig("pad_crop", 32, 3))
    image = picture(*shape, 3)
    padded = transform.prepare_train(image)
    assert padded.shape == (37, 37, 3)
    inside = np.zeros((37, 37), bool)
    inside[slice(*rows), slice(*columns)] = True
    assert (padded[~inside] == (124, 117, 104)).all()
    part = padded[slice(*rows), slice(*columns)]
    expected = bilinear(image, *part.shape[:2], (0, 0, *shape[::-1]))
    if shape != (400, 1):  # shrunk in two steps where it is much too large
        assert np.abs(part - expected).max() <= 1.01
    np.testing.assert_array_equal(transform.prepare_test(image), padded[2:34, 2:34])
    cropped = transform.augment(padded, np.random.default_rng(0)).tobytes()
    places = [(top, left) for top in range(6) for left in range(6)]
    crops = [padded[t : t + 32, left : left + 32].tobytes() for t, left in places]
    assert cropped in crops


@pytest.mark.parametrize(
    ("normalization", "colour"),
    [
        (None, (124, 117, 104)),
        ("imagenet", (124, 116, 104)),
        ("half", (128,) * 3),
        ("none", (0, 0, 0)),
    ],
)
def test_padding_is_nothing_to_the_network(normalization, colour):
    config = TransformConfig("pad_crop", 32, 3, normalization)
    padded = transforms.build(config).prepare_train(picture(10, 32, 3))
    assert (padded[0] == colour).all()
    seen = transforms.normalize(jnp.asarray(padded[None]), config)[0, 0]
    # Half a step of 255 away at most.
    step = 0.5 if normalization is None else 0.5 / 255 / 0.224
    assert np.abs(seen).max() <= step + 1e-4


def bilinear(image, height, width, box):
    """Antialiased bilinear resampling of a box (left, top, right, bottom), float64."""

    def weights(count, new, low, high):
        scale = (high - low) / new
        centres = low + (np.arange(new)[:, None] + 0.5) * scale
        far = np.abs(np.arange(count) + 0.5 - centres) / max(scale, 1.0)
        found = np.maximum(1.0 - far, 0.0)
        return found / found.sum(axis=1, keepdims=True)

    rows = weights(image.shape[0], height, box[1], box[3])
    columns = weights(image.shape[1], width, box[0], box[2])
    return np.einsum("hy,wx,yxc->hwc", rows, columns, image.astype(np.float64))


@pytest.mark.parametrize("shape", [(60, 50), (37, 90), (64, 37), (20, 21), (37, 37)])
def test_middle_of_the_image_with_the_shorter_side_at_256_to_224(shape):
    """As if all of it had been resized, of which the crop was then taken."""
    transform = transforms.build(TransformConfig("random_resized_crop", 32, 3))
    image = picture(*shape, 3)
    height, width = (round(side * 37 / min(shape)) for side in shape)
    whole = bilinear(image, height, width, (0, 0, *shape[::-1]))
    top, left = (height - 32) // 2, (width - 32) // 2
    expected = whole[top : top + 32, left : left + 32]
    assert np.abs(transform.prepare_test(image) - expected).max() <= 1.01


def test_random_boxes_have_the_areas_ratios_and_places_of_the_formula():
    """In an image so large that nothing is drawn twice, rounding aside."""
    rng = np.random.default_rng(0)
    side, count = 10_000, 4000
    boxes = np.array([random_box(side, side, rng) for _ in range(count)], float)
    top, left, height, width = boxes.T
    assert (boxes >= 0).all()
    assert (top + height <= side).all() and (left + width <= side).all()
    area, ratio = height * width / side**2, width / height
    assert 0.0799 < area.min() < 0.085 and area.max() < 1.0001
    assert 0.7499 < ratio.min() < 0.752 and 1.33 < ratio.max() < 1.3335
    # Of a square, a box fits unless its longer side, sqrt(area * ratio), is above 1.
    kept = area < 0.75
    uniform = (area[kept] - 0.08) / 0.67
    logarithm = np.log(ratio[kept]) / np.log(4 / 3) / 2 + 0.5
    for drawn in (
        uniform,
        logarithm,
        ((top + 0.5) / (side - height + 1))[kept],
        ((left + 0.5) / (side - width + 1))[kept],
    ):
        assert kolmogorov(drawn) < 1.95 / np.sqrt(len(drawn))  # one in a thousand
    assert abs(np.corrcoef(uniform, logarithm)[0, 1]) < 0.06


def kolmogorov(values):
    """The largest distance of a sample from the uniform distribution on [0, 1]."""
    ordered, count = np.sort(values), len(values)
    steps = np.arange(count + 1) / count
    return max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max())


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (1, 1, (0, 0, 1, 1)),
        (400, 30, (180, 0, 40, 30)),
        (30, 400, (0, 180, 30, 40)),
        (1, 5, (0, 2, 1, 1)),
    ],
)
def test_boxes_in_images_too_long_for_them(height, width, box):
    """The middle, as wide or high as a box may be; torchvision's last resort."""
    found = {random_box(height, width, np.random.default_rng(i)) for i in range(300)}
    assert box in found
    for top, left, h, w in found:
        assert 0 <= top <= height - h and 0 <= left <= width - w and h > 0 < w


def test_random_boxes_reach_every_border():
    boxes = [random_box(5, 6, np.random.default_rng(seed)) for seed in range(300)]
    smaller = [box for box in boxes if box[2] < 5 and box[3] < 6]
    assert {0, 1} <= {top for top, _, _, _ in smaller}
    assert {0, 1} <= {left for _, left, _, _ in smaller}
    assert any(top + height == 5 for top, _, height, _ in smaller)
    assert any(left + width == 6 for _, left, _, width in smaller)


def test_random_resized_crop_shows_the_box():
    image = picture(50, 70, 3)
    transform = transforms.build(TransformConfig("random_resized_crop", 20, 3))
    for seed in range(20):
        box = random_box(50, 70, np.random.default_rng(seed))
        top, left, height, width = box
        part = image[top : top + height, left : left + width]
        expected = bilinear(part, 20, 20, (0, 0, width, height))
        result = transform.augment(image, np.random.default_rng(seed))
        assert np.abs(result - expected).max() <= 1.01


@pytest.mark.parametrize("channels", [1, 3])
def test_opencv_shows_the_same_box_without_antialiasing(channels):
    pytest.importorskip("cv2", reason="needs the extra `opencv`")
    image = picture(40, 50, channels)
    config = TransformConfig("random_resized_crop", 64, channels)
    pillow = transforms.build(config)
    opencv = transforms.build(replace(config, resizer="opencv"))
    for seed in range(20):  # Crops are enlarged, so there is nothing to antialias.
        expected = pillow.augment(image, np.random.default_rng(seed))
        result = opencv.augment(image, np.random.default_rng(seed))
        assert result.shape == (64, 64, channels) and result.dtype == np.uint8
        assert np.abs(result.astype(int) - expected).max() <= 2
    whole = picture(400, 400, channels)
    assert (opencv.prepare_test(whole) == pillow.prepare_test(whole)).all()


def test_opencv_that_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    config = TransformConfig("random_resized_crop", resizer="opencv")
    with pytest.raises(InputError, match=r"pip install 'metricjax\[opencv\]'"):
        transforms.build(config)


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


def normalized(images, recipe, **settings):
    settings = {"channels": images.shape[3]} | settings
    return transforms.normalize(
        jnp.asarray(images), TransformConfig(recipe, **settings)
    )


# Colours of which each channel tells which one it is, as the network sees them.
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 200]], np.uint8).reshape(
    1, 1, 3, 3
)
SEEN = {
    "imagenet": (COLOURS / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "half": COLOURS / 127.5 - 1,
    "caffe": COLOURS[..., [2, 1, 0]] - np.array([103.939, 116.779, 123.68]),
    "none": COLOURS / 255,
}


@pytest.mark.parametrize("recipe", transforms.RECIPES)
@pytest.mark.parametrize("normalization", [None, *SEEN])
def test_normalization(recipe, normalization):
    of_recipe = {"pad_crop": "caffe", "affine": "half", "none": "half"}
    expected = SEEN[normalization or of_recipe.get(recipe, "imagenet")]
    result = normalized(COLOURS, recipe, normalization=normalization)
    np.testing.assert_allclose(
        result, expected, atol=1e-4 if expected.max() > 9 else 1e-6
    )
    assert result.dtype == jnp.float32


@pytest.mark.parametrize(
    ("normalization", "mean", "deviation"),
    [
        ("imagenet", 0.449 * 255, 0.226 * 255),
        ("half", 127.5, 127.5),
        ("caffe", 114.799, 1),
        ("none", 0, 255),
    ],
)
def test_normalization_of_grey(normalization, mean, deviation):
    """The means of the three colours' means and deviations."""
    images = picture(4, 4, 1)[None]
    result = normalized(images, "none", normalization=normalization)
    np.testing.assert_allclose(result, (images - mean) / deviation, rtol=2e-3)


def test_caffe_bgr_is_of_the_image_that_was_read():
    """Whole way of a red image: the third channel is the red one, about 131."""
    config = TransformConfig("pad_crop", 8, 3)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    seen = transforms.normalize(
        transforms.build(config).prepare_test(red)[None], config
    )
    expected = np.array([-103.939, -116.779, 131.32])
    np.testing.assert_allclose(seen[0, 4, 4], expected, atol=1e-3)


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
    still = [name for name in transforms.RECIPES if not TransformConfig(name).flips]
    assert still == ["affine", "none"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(recipe="affin"), "affin.*choose one of"),
        (dict(image_size=0), "image_size is 0"),
        (dict(channels=4), "channels is 4"),
        (dict(resizer="cv"), "no resizer 'cv'"),
        (dict(resizer="opencv"), "only random_resized_crop"),
        (dict(shear=-0.1), "shear is -0.1"),
        (dict(normalization="cafe"), "no normalization 'cafe'.*imagenet, half, caffe"),
    ],
)
def test_bad_settings_are_told_in_a_sentence(settings, words):
    with pytest.raises(InputError, match=words):
        TransformConfig(**settings)
