"""A trained network as one file that other programs run: StableHLO or ONNX."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Float, UInt8

from metricjax import models
from metricjax.errors import InputError
from metricjax.exporters.onnx import convert
from metricjax.inference import embedder
from metricjax.inference.trained_model import TrainedModel
from metricjax.runtime import mesh

FORMATS = ("stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

# The largest difference of a number of an embedding that rounding explains.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


def stablehlo(trained: TrainedModel, platforms: Sequence[str]) -> bytes:
    """The network as `jax.export` serialises it.

    One file for several platforms: each does what is fastest there, as in training.
    `jax.export.deserialize(bytearray(...)).call(images)` runs it, with jax alone.

    Args:
      trained: the run.
      platforms: of `PLATFORMS`.

    Raises:
      InputError: the network cannot be exported, or flatbuffers is not installed.
    """
    try:
        import flatbuffers  # noqa: F401, what jax.export serialises with
    except ImportError as error:
        raise InputError(
            "--format stablehlo needs flatbuffers, which is not installed: pip install "
            "'metricjax[export]'."
        ) from error
    function, shape = _function(trained)
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *shape), np.uint8)
    try:
        exported = export.export(jax.jit(function), platforms=platforms)(images)
        return bytes(exported.serialize())
    except (NotImplementedError, ValueError) as error:
        raise _not_exportable(trained, error) from error


def onnx(trained: TrainedModel) -> bytes:
    """The network as an ONNX model, in float32 whatever it was trained in.

    Raises:
      InputError: the network cannot be written as ONNX, or onnx is not installed.
    """
    function, shape = _function(trained, dtype="float32")
    try:
        return convert.convert(function, shape).SerializeToString()
    except NotImplementedError as error:
        raise _not_exportable(trained, error) from error


def run_stablehlo(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """The exported function, read back."""
    exported = export.deserialize(bytearray(content))
    return lambda images: np.asarray(exported.call(images))


def run_onnx(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """The same in onnxruntime, on the CPU.

    Raises:
      InputError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            "--format onnx is checked by onnxruntime, which is not installed: pip "
            "install 'metricjax[onnx]'."
        ) from error
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["embeddings"], {"images": images})[0]


def difference(
    trained: TrainedModel, run: Callable[[np.ndarray], np.ndarray], count: int = 5
) -> float:
    """The largest difference between an exported network's embeddings and the run's.

    Of pictures of noise, coarse and fine, all at once and the first alone.

    Raises:
      InputError: the run's own embeddings are not numbers.
    """
    images = _pictures(count, trained.transform.config.shape)
    expected = trained.embed_images(list(images))
    if not np.isfinite(expected).all():
        raise InputError(
            f"The network of {trained.address} gives NaN: its parameters are of no "
            "use; train again, with a smaller learning rate."
        )
    found = run(images), run(images[:1])
    return max(
        float(np.abs(some - expected[: len(some)]).max(initial=0)) for some in found
    )


def _pictures(count: int, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "n h w c"]:
    height, width, channels = shape
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(count):
        side = 2 ** (number % 5 + 1)
        coarse = rng.integers(0, 256, (side, side, channels), np.uint8)
        rows, columns = (np.arange(n) * side // n for n in (height, width))
        pictures.append(coarse[rows][:, columns])
    return np.stack(pictures)


def _function(trained: TrainedModel, dtype: str | None = None):
    """Images to unit embeddings with the parameters inside, and an image's shape."""
    model = trained.model
    if dtype not in (None, trained.config.model.dtype):
        model = models.build(dataclasses.replace(trained.config.model, dtype=dtype))
    transform = trained.transform.config
    embed = embedder.make_embed_step(model, transform)
    variables = jax.tree.map(jnp.asarray, mesh.to_host(trained.variables))

    def function(images) -> Float[jax.Array, "b d"]:
        return embed(variables, images)

    return function, transform.shape


def _not_exportable(trained: TrainedModel, error: Exception) -> InputError:
    network = (
        f"{trained.config.model.backbone} with the head {trained.config.model.head}"
    )
    return InputError(
        f"The network of {trained.address} ({network}) cannot be exported: "
        f"{str(error).splitlines()[0]}"
    )
