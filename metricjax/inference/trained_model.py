"""A finished run, opened to be used: its network, its settings, its results."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float, UInt8

from metricjax import models
from metricjax.config.parsing import from_config_dict, to_dict
from metricjax.config.schema import RunConfig
from metricjax.data import pipeline, transforms
from metricjax.data.datasets import Split
from metricjax.errors import InputError
from metricjax.inference import embedder
from metricjax.inference.embedder import Embedded, Embedder
from metricjax.models import pretrained
from metricjax.runtime import mesh
from metricjax.storage.bucket import BucketFiles
from metricjax.storage.directories import local_path

_FILES = ("config.json", "results.json", "model.safetensors")
# Settings of the model that change how it is trained, not what it computes.
_TRAINING_ONLY = ("pretrained", "frozen_bn", "remat")


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained network and what is known of it; nothing here changes.

    Attributes:
      address: the run's directory, as the user called it.
      config: the settings of the run.
      results: what its results.json holds.
      variables: the selected parameters and running statistics, on the devices.
      embedder: the network as a program.
      identity: SHA-256 of the parameters and of all settings that an embedding depends
        on: embeddings of one identity can be compared with each other.
    """

    address: str
    config: RunConfig
    results: dict[str, Any]
    variables: Any
    embedder: Embedder
    identity: str

    @classmethod
    def open(cls, run: Path | str) -> "TrainedModel":
        """Open a finished run.

        Args:
          run: its directory, or the address of one in a bucket.

        Raises:
          InputError: there is no finished run, or its files do not belong together.
        """
        path = local_path(run)
        if path is not None:
            return cls._open(path, str(run))
        with tempfile.TemporaryDirectory() as directory:
            store = BucketFiles(str(run))
            there = set(store.find(""))
            store.get([name for name in _FILES if name in there], Path(directory))
            return cls._open(Path(directory), str(run))

    @classmethod
    def _open(cls, path: Path, address: str) -> "TrainedModel":
        if not (path / "config.json").is_file():
            raise InputError(
                f"{address} holds no run (no config.json): name the workdir of one."
            )
        missing = [name for name in _FILES if not (path / name).is_file()]
        if missing:
            raise InputError(
                f"The run in {address} is not finished ({missing[0]} is missing): run "
                "its command again until it says where the report is."
            )
        config = from_config_dict(_read_json(path / "config.json", address))
        results = _read_json(path / "results.json", address)
        model = models.build(config.model, _classes(config, results, address))
        shape = config.data.transform.shape
        weights = path / "model.safetensors"
        variables = pretrained.load_saved(weights, model, image_shape=shape)
        devices = mesh.make_mesh()
        size = -(-config.evaluation.batch_size // devices.size) * devices.size
        transform = transforms.build(config.data.transform)
        return cls(
            address=address,
            config=config,
            results=results,
            variables=mesh.same_everywhere(devices, variables),
            embedder=Embedder(model, transform, devices, size),
            identity=_identity(config, weights),
        )

    @property
    def model(self) -> nn.Module:
        return self.embedder.model

    @property
    def transform(self) -> transforms.Transform:
        return self.embedder.transform

    @cached_property
    def width(self) -> int:
        """Numbers of an embedding."""
        images = jax.ShapeDtypeStruct((1, *self.transform.config.shape), np.uint8)
        function = embedder.make_embed_step(self.model, self.transform.config)
        return jax.eval_shape(function, self.variables, images).shape[1]

    def blocks(
        self,
        split: Split,
        *,
        first: int = 0,
        threads: int | None = None,
        skipped: pipeline.SkipLog | None = None,
    ) -> Iterator[tuple[slice, Embedded]]:
        """The images of a split from `first` on, in order, a batch at a time.

        Yields:
          (which images, their embeddings); see `Embedder.blocks`.
        """
        rest = split.subset(np.arange(first, len(split))) if first else split
        found = self.embedder.blocks(
            self.variables, rest, threads=threads, skipped=skipped
        )
        for rows, block in found:
            yield slice(first + rows.start, first + rows.stop), block

    def embed(self, split: Split, **options) -> Embedded:
        """All images of a split; options as those of `blocks`."""
        found = [block for _, block in self.blocks(split, **options)]
        return Embedded(
            np.concatenate([block.embeddings for block in found]),
            np.concatenate([block.valid for block in found]),
        )

    def embed_images(
        self, images: Sequence[UInt8[np.ndarray, "h w c"]]
    ) -> Float[np.ndarray, "n d"]:
        """Decoded images of any sizes, with the channels of `config`."""
        return self.embedder.embed_images(self.variables, images)

    def embed_prepared(
        self, images: Sequence[UInt8[np.ndarray, "s s c"]]
    ) -> Float[np.ndarray, "n d"]:
        """Images that `transform.prepare_test` has made, no more than a batch."""
        return self.embedder.embed_prepared(self.variables, images)


def _read_json(path: Path, address: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{address}/{path.name} cannot be read ({error}): restore it, or name "
            "another run."
        ) from error
    if not isinstance(found, dict):
        raise InputError(
            f"{address}/{path.name} is not what a run writes: restore it, or name "
            "another run."
        )
    return found


def _classes(config: RunConfig, results: dict, address: str) -> int | None:
    """How many classes the model's classifier was made for; None without one."""
    if not config.objective.classifies:
        return None
    try:
        return int(results["dataset"]["train"]["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{address}/results.json does not say on how many classes was trained: "
            "restore it, or name another run."
        ) from error


def _identity(config: RunConfig, weights: Path) -> str:
    settings = to_dict(config)
    model = {k: v for k, v in settings["model"].items() if k not in _TRAINING_ONLY}
    text = json.dumps([model, settings["data"]["transform"]], sort_keys=True)
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(f"{text}\n{digest}".encode()).hexdigest()
