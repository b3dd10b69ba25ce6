"""The same from PyTorch's DataLoader: Pillow, OpenCV, or our codec and uint8."""

import math
import sys
from pathlib import Path

import cv2
import harness
import numpy as np
import simplejpeg
import torch
from input_cases import BATCH, DEVIATION, MEAN, RATIO, SCALE, SIZE, paths
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import torch_models

torch_models.torchvision()
from torchvision import transforms  # noqa: E402


def random_box(height, width):
    """torchvision's rule: an area and a ratio, up to ten times; else the middle."""
    for _ in range(10):
        area = height * width * np.random.uniform(*SCALE)
        ratio = math.exp(np.random.uniform(*np.log(RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = np.random.randint(height - h + 1)
            left = np.random.randint(width - w + 1)
            return top, left, h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def cropped(pixels):
    """Crop, resize and perhaps mirror with OpenCV, uint8."""
    top, left, height, width = random_box(*pixels.shape[:2])
    part = pixels[top : top + height, left : left + width]
    part = cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return part[:, ::-1] if np.random.random() < 0.5 else part


class Images(torch.utils.data.Dataset):
    """An image by its number, ready for the network."""

    def __init__(self, folder, way):
        self.paths, self.way = paths(folder), way
        self.recipe = transforms.Compose(
            [
                transforms.RandomResizedCrop(SIZE, SCALE, RATIO),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN.tolist(), DEVIATION.tolist()),
            ]
        )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        if self.way == "pillow":
            with Image.open(self.paths[index]) as image:
                return self.recipe(image.convert("RGB"))
        if self.way == "opencv":
            pixels = cv2.imread(self.paths[index], cv2.IMREAD_COLOR_RGB)
            scaled = cropped(pixels).astype(np.float32) / np.float32(255)
            values = (scaled - MEAN) / DEVIATION
            return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
        with open(self.paths[index], "rb") as file:
            pixels = simplejpeg.decode_jpeg(file.read(), "RGB")
        return torch.from_numpy(np.ascontiguousarray(cropped(pixels)))


class Task:
    """One pass over all images, in batches."""

    def __init__(self, folder, way, workers):
        cv2.setNumThreads(1)
        self._loader = torch.utils.data.DataLoader(
            Images(folder, way), BATCH, shuffle=True, drop_last=True,
            num_workers=workers, persistent_workers=True,
        )  # fmt: skip

    def step(self):
        for batch in self._loader:
            self._last = batch

    def result(self):
        return {"shape": np.array(self._last.shape)}

    def device_peak(self):
        return None


if __name__ == "__main__":
    harness.serve(lambda spec: Task(spec["folder"], spec["way"], spec["workers"]))
