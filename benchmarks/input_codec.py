"""The floor: decode, crop and resize in threads, and nothing else."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import harness
import numpy as np
import simplejpeg
from input_cases import paths
from input_torch import cropped


class Task:
    """One pass over all images; `way` says whether they are cropped and resized."""

    def __init__(self, folder, way, workers):
        cv2.setNumThreads(1)
        self._paths, self._crops = paths(folder), way == "crop"
        self._pool, self._workers = ThreadPoolExecutor(workers), workers

    def _share(self, paths):
        for path in paths:
            with open(path, "rb") as file:
                pixels = simplejpeg.decode_jpeg(file.read(), "RGB")
            if self._crops:
                pixels = cropped(pixels)
        return pixels.shape

    def step(self):
        shares = [self._paths[i :: self._workers] for i in range(self._workers)]
        self._last = list(self._pool.map(self._share, shares))[-1]

    def result(self):
        return {"shape": np.array(self._last)}

    def device_peak(self):
        return None


if __name__ == "__main__":
    harness.serve(lambda spec: Task(spec["folder"], spec["way"], spec["workers"]))
