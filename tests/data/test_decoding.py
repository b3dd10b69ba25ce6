"""Images of every mode come out as they look in a viewer."""

import io

import numpy as np
import pytest
from PIL import Image

from metricjax.data import decoding


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


RED_BLUE = np.zeros((8, 16, 3), np.uint8)
RED_BLUE[:, :8], RED_BLUE[:, 8:] = (255, 0, 0), (0, 0, 255)
GREY = np.arange(128, dtype=np.uint8).reshape(8, 16)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF", "PPM", "WEBP"])
def test_formats(format):
    options = dict(lossless=True) if format == "WEBP" else {}
    data = encode(Image.fromarray(RED_BLUE), format, **options)
    assert decoding.looks_like_image(data[: decoding.HEAD_BYTES])
    np.testing.assert_array_equal(decoding.decode(data, 3), RED_BLUE)


def test_grey_and_colour():
    data = encode(Image.fromarray(GREY))
    np.testing.assert_array_equal(decoding.decode(data, 1), GREY[:, :, None])
    np.testing.assert_array_equal(
        decoding.decode(data, 3), np.repeat(GREY[:, :, None], 3, axis=2)
    )
    grey = decoding.decode(encode(Image.fromarray(RED_BLUE)), 1)
    assert grey.shape == (8, 16, 1)
    assert grey[0, 0, 0] == 76 and grey[0, 15, 0] == 29  # 0.299 and 0.114 of 255


def test_one_bit():
    data = encode(Image.fromarray(GREY > 60))
    np.testing.assert_array_equal(decoding.decode(data, 1)[..., 0], (GREY > 60) * 255)


def test_palette():
    image = Image.fromarray(RED_BLUE).convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(decoding.decode(encode(image), 3), RED_BLUE)


def test_palette_with_a_transparent_colour_lies_on_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 255, 0, 255, 0, 0])
    image.paste(0, (0, 0, 2, 4))
    pixels = decoding.decode(encode(image, transparency=0), 3)
    assert (pixels[:, :2] == 255).all()
    assert (pixels[:, 2:] == (255, 0, 0)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_lies_on_white(channels):
    image = np.zeros((4, 6, 4), np.uint8)
    image[:, 2:4, 3] = 128  # Half transparent black between clear and opaque black.
    image[:, 4:, 3] = 255
    pixels = decoding.decode(encode(Image.fromarray(image)), channels)
    assert (pixels[:, :2] == 255).all() and (pixels[:, 4:] == 0).all()
    assert np.abs(pixels[:, 2:4].astype(int) - 127).max() <= 1
    grey = Image.fromarray(image).convert("LA")
    np.testing.assert_array_equal(decoding.decode(encode(grey), channels), pixels)


def test_cmyk_jpeg():
    image = Image.fromarray(RED_BLUE).convert("CMYK")
    pixels = decoding.decode(encode(image, "JPEG", quality=100), 3).astype(int)
    assert np.abs(pixels[:, 1:6] - (255, 0, 0)).max() < 12
    assert np.abs(pixels[:, 10:15] - (0, 0, 255)).max() < 12


def test_a_large_jpeg_comes_out_as_small_as_is_enough():
    pixels = np.repeat(np.repeat(RED_BLUE, 40, axis=0), 40, axis=1)
    data = encode(Image.fromarray(pixels), "JPEG", quality=95)
    height, width = pixels.shape[:2]
    assert decoding.decode(data, 3).shape == pixels.shape
    small = decoding.decode(data, 3, least=30)
    assert 30 <= min(small.shape[:2]) < min(height, width)
    np.testing.assert_allclose(
        small.shape[1] / small.shape[0], width / height, rtol=0.1
    )
    assert np.abs(small.mean(axis=(0, 1)) - pixels.mean(axis=(0, 1))).max() < 6
    assert decoding.decode(data, 3, least=10_000).shape == pixels.shape
    png = encode(Image.fromarray(RED_BLUE))
    np.testing.assert_array_equal(decoding.decode(png, 3, least=2), RED_BLUE)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format):
    values = np.linspace(0, 65535, 128).round().astype(np.uint16).reshape(8, 16)
    data = encode(Image.fromarray(values), format)
    expected = np.rint(values / 257.0)[:, :, None]
    np.testing.assert_array_equal(decoding.decode(data, 1), expected)
    dark = np.full((4, 4), 514, np.uint16)  # Stays dark: no stretching either.
    assert (decoding.decode(encode(Image.fromarray(dark), format), 1) == 2).all()


def test_float_and_integer_tiff():
    fractions = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    data = encode(Image.fromarray(fractions), "TIFF")
    np.testing.assert_array_equal(
        decoding.decode(data, 1)[..., 0], np.rint(fractions * 255)
    )
    bytes_as_int32 = Image.fromarray(np.array([[0, 100, 255]], np.int32))
    assert decoding.decode(encode(bytes_as_int32, "TIFF"), 1).ravel().tolist() == [
        0,
        100,
        255,
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    """Rotating as the orientation says gives back the upright picture."""
    stored = {
        1: RED_BLUE,
        2: RED_BLUE[:, ::-1],
        3: RED_BLUE[::-1, ::-1],
        4: RED_BLUE[::-1],
        5: RED_BLUE.transpose(1, 0, 2),
        6: np.rot90(RED_BLUE),
        7: RED_BLUE[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RED_BLUE, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    data = encode(image, "JPEG", exif=exif, quality=100, subsampling=0)
    pixels = decoding.decode(data, 3).astype(int)
    assert np.abs(pixels - RED_BLUE).max() < 20


def test_orientation_in_xmp_data():
    """Where there is no EXIF data, PIL heeds these."""
    image = Image.fromarray(np.ascontiguousarray(np.rot90(RED_BLUE)))
    description = (
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        b'tiff:Orientation="6"/>'
    )
    data = encode(image, "JPEG", xmp=description, quality=100, subsampling=0)
    pixels = decoding.decode(data, 3).astype(int)
    assert np.abs(pixels - RED_BLUE).max() < 20


def test_damaged_files_give_a_reason():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for format in ("PNG", "JPEG", "GIF"):
        data = encode(Image.fromarray(noise), format)
        cut = data[: len(data) // 2]
        assert decoding.looks_like_image(cut[: decoding.HEAD_BYTES])
        with pytest.raises(ValueError, match=r"\w+"):
            decoding.decode(cut, 3)
    with pytest.raises(ValueError, match="not an image of a known format"):
        decoding.decode(b"no image at all", 3)


@pytest.mark.parametrize("head", [b"", b"path,label\n", b"%PDF-1.4", b"\x00" * 100])
def test_other_files_do_not_look_like_images(head):
    assert not decoding.looks_like_image(head)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_decompression_bombs_are_refused(monkeypatch, format):
    data = encode(Image.new("L", (200, 100)), format)
    for limit in (15_000, 5_000):  # Above PIL's limit for a warning, for an error.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match="limit|bomb"):
            decoding.decode(data, 1)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs_are_what_pil_makes_of_them(subsampling, progressive, channels):
    """Whichever library decodes them: a run goes on alike wherever it goes on."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    image = smooth.resize((61, 43)).convert("L" if channels == 1 else "RGB")
    options = {"quality": 80, "progressive": progressive}
    if channels == 3:
        options["subsampling"] = subsampling
    data = encode(image, "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data))).reshape(43, 61, channels)
    assert np.ptp(expected) > 100
    np.testing.assert_array_equal(decoding.decode(data, channels), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs_of_the_other_channels(channels):
    image = Image.fromarray(RED_BLUE if channels == 1 else GREY)
    data = encode(image, "JPEG", quality=95)
    expected = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    np.testing.assert_array_equal(
        decoding.decode(data, channels), np.asarray(expected).reshape(8, 16, channels)
    )


def test_jpegs_that_pil_forgives_are_read():
    """Bytes after the end and before a marker; a picture cut short is not forgiven."""
    image = Image.fromarray(np.tile(GREY, (8, 8)))
    data = encode(image, "JPEG")
    expected = decoding.decode(data, 1)
    np.testing.assert_array_equal(decoding.decode(data + b"trailer" * 9, 1), expected)
    with pytest.raises(ValueError):
        decoding.decode(data[: len(data) // 2], 1)


def test_many_rows_of_sixteen_bits():
    rows = np.linspace(0, 65535, 200).astype(np.uint16).reshape(-1, 1)
    data = encode(Image.fromarray(np.tile(rows, (1, 5))))
    wanted = np.tile(np.rint(rows / 257.0), (1, 5))
    np.testing.assert_array_equal(decoding.decode(data, 1)[..., 0], wanted)
