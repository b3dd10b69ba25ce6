"""The images of the input benchmark, and what every variant does with them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, BATCH, CLASSES = 224, 64, 64
WIDTH, HEIGHT, QUALITY = 500, 375, 90
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)


def photograph(number):
    """A JPEG of 500 x 375 pixels and about 55 KB: shapes of every size, some grain."""
    rng = np.random.default_rng(number)
    picture = rng.normal(0, 5, (HEIGHT, WIDTH, 3))
    for cells, strength in ((3, 60), (9, 40), (30, 24), (100, 12)):
        coarse = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[:, :, channel])
            layer = layer.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            picture[:, :, channel] += strength * np.asarray(layer)
    file = io.BytesIO()
    pixels = np.clip(picture + 128, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write(folder, count):
    """`count` photographs in folders by class; returns their mean size in bytes."""
    sizes = []
    for number in range(count):
        path = Path(folder) / f"class{number % CLASSES:02d}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = photograph(number)
        path.write_bytes(data)
        sizes.append(len(data))
    return sum(sizes) / count


def paths(folder):
    """The photographs of a folder, sorted."""
    return sorted(str(path) for path in Path(folder).rglob("*.jpg"))
