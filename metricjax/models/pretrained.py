"""Weights from files that people have: safetensors, npz and PyTorch's, and back.

    variables = load("resnet50.safetensors", ResNet(50))
    save("out.safetensors", module, variables)

Files are read as data alone: safetensors and npz hold nothing else, and PyTorch's are
opened with `weights_only=True`, which refuses a pickle that would run code.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from metricjax.errors import InputError, disk_errors
from metricjax.models.abe import Parts
from metricjax.models.backbone import Backbone
from metricjax.models.weights import files
from metricjax.models.weights import names as weight_names

HEAD = "head."


def load(
    path: str | Path,
    module: nn.Module,
    *,
    image_shape: tuple[int, int, int] = (224, 224, 3),
    say: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """The variables of a backbone from a file of weights.

    Names may be torchvision's or timm's, those of the Caffe models and of Cadene's
    BN-Inception where a backbone comes from there, or ours as `save` writes them; a
    common prefix such as `module.` is taken off. Kernels are in PyTorch's order, [o, i,
    h, w] and [o, i], statistics of batch normalisation included. Classifiers are left
    out. For grey images the first kernel is added up over its colours, which is what it
    computes of a grey picture in three equal channels. A ViT's position embeddings are
    resized (cubic, as timm does) where the images have another size.

    Args:
      path: a safetensors, npz, or PyTorch file (for which torch must be installed).
      module: a backbone, or a head on one. The parts of `ABE` get each the weights of
        their blocks; the heads of `MHeads` all the same ones.
      image_shape: [h, w, c] that the variables are for.
      say: called with a sentence on what was read and what was left out.

    Returns:
      `{"params": ..., "batch_stats": ...}` of a backbone; of a head's module only what
      belongs to its backbone, to be joined with the rest by `merge`. float32.

    Raises:
      InputError: a file that is missing, cut short, of another kind, or a pickle with
        more in it than arrays; tensors that are missing, left over or of another shape.
    """
    backbone = _backbone_of(module)
    found = files.read(path)
    wanted = _leaves(backbone.clone(parent=None, name=None), image_shape)
    names, stored = weight_names.match(backbone, list(wanted), found)
    _check_names(path, backbone, names, stored, found)
    arrays = {
        leaf: _fitted(path, name, stored[name], wanted[leaf].shape, leaf)
        for leaf, name in names.items()
    }
    left_out = sorted(name for name in stored if weight_names.is_classifier(name))
    sentence = f"weights: {len(arrays)} arrays from {path}"
    if left_out:
        sentence += f"; its classifier is left out ({', '.join(left_out[:4])})"
    say(sentence)
    return _placed(module, arrays, image_shape)


def merge(variables: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` with the leaves of `loaded` in place of its own."""
    together = flatten_dict(dict(variables)) | flatten_dict(dict(loaded))
    return unflatten_dict(together)


def save(path: str | Path, module: nn.Module, variables: Mapping[str, Any]) -> None:
    """Write a model's variables to a safetensors file that `load` reads.

    The backbone's arrays have the names and the order of axes that PyTorch's model of
    it has (torchvision's, timm's or Cadene's). All others are called `head.` and their
    path, kernels likewise in PyTorch's order. A model whose backbone is in parts
    (`ABE`, `MHeads`) has all under `head.`.

    Args:
      path: file to be written; one that exists is replaced when the new one is whole.
      module: a backbone, or a head on one.
      variables: of the module.

    Raises:
      InputError: the disk is full.
    """
    names = _saved_names(module, list(flatten_dict(dict(variables))))
    tensors = {}
    for leaf, array in flatten_dict(dict(variables)).items():
        array = _to_torch(np.asarray(array), leaf)
        tensors[names[leaf]] = np.ascontiguousarray(array)
    with disk_errors(Path(path)):
        files.write(path, tensors)


def load_saved(
    path: str | Path, module: nn.Module, *, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """All variables of a module, as `save` wrote them; the same numbers.

    Args:
      path: the file.
      module: the one that was saved.
      image_shape: [h, w, c] that it was trained on.

    Returns:
      `{"params": ..., "batch_stats": ...}`, float32 numpy arrays.

    Raises:
      InputError: the file cannot be read, or is not of this module.
    """
    found = files.read(path)
    wanted = _shapes(module, image_shape)
    names = _saved_names(module, list(wanted))
    missing = [name for name in names.values() if name not in found]
    surplus = found.keys() - set(names.values())
    if missing or surplus:
        lacks = (
            f"lacks {_some(missing)}" if missing else f"has {_some(surplus)} besides"
        )
        raise InputError(
            f"{path} does not hold the {type(module).__name__} that the settings "
            f"describe: it {lacks}. Restore the file that was saved with them."
        )
    variables = {}
    for leaf, shape in wanted.items():
        array = _from_ours(found[names[leaf]], leaf)
        if array.shape != shape.shape:
            raise InputError(
                f"{path}: {names[leaf]} is of shape {list(array.shape)} where the "
                f"settings describe {list(shape.shape)}. Restore the file that was "
                "saved with them."
            )
        variables[leaf] = np.ascontiguousarray(array)
    return unflatten_dict(variables)


def _saved_names(module, paths) -> dict[tuple[str, ...], str]:
    """What `save` calls the variables at some paths, collection first."""
    backbone = _backbone_of(module)
    inside = () if module is backbone else ("backbone",)
    known = _leaves(backbone.clone(parent=None, name=None), (224, 224, 3))
    names = {}
    for path in paths:
        leaf = path[1:]
        own = leaf[len(inside) :]
        if leaf == (*inside, *own) and own in known:
            names[path] = weight_names.own_name(backbone, own)
        else:
            names[path] = HEAD + weight_names.plain(leaf)
    return names


def _backbone_of(module) -> Backbone:
    backbone = module if isinstance(module, Backbone) else module.backbone
    backbone = backbone.whole if isinstance(backbone, Parts) else backbone
    if not isinstance(backbone, Backbone):
        raise InputError(
            f"Weights are loaded into a backbone, but {type(module).__name__} has none."
        )
    return backbone


def _leaves(module, image_shape) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Shapes of all variables, by their path without the collection's name."""
    return {path[1:]: leaf for path, leaf in _shapes(module, image_shape).items()}


def _shapes(module, image_shape):
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return flatten_dict(jax.eval_shape(module.init, jax.random.key(0), images))


def _check_names(path, backbone, names, stored, found):
    """Refuse a file that is not of this network."""
    kind = type(backbone).__name__
    missing = [name for name in names.values() if name not in stored]
    used = set(names.values())
    surplus = [n for n in stored if n not in used and not weight_names.is_classifier(n)]
    if not found or len(missing) == len(names):
        begins = ", ".join(sorted(found)[:3]) or "nothing"
        raise InputError(
            f"{path} holds no weights of {kind}: it has {begins}, ..., but "
            f"{_some(missing)} were looked for. Choose the backbone that the file is "
            "of."
        )
    if missing:
        raise InputError(
            f"{path} lacks {len(missing)} of the {len(names)} arrays of {kind}: "
            f"{_some(missing)}. Choose a file of this network."
        )
    if surplus:
        raise InputError(
            f"{path} has {len(surplus)} arrays that {kind} has no place for: "
            f"{_some(surplus)}. Choose the backbone that the file is of."
        )


def _some(names) -> str:
    """The first few, and that there are more."""
    more = ", ..." if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def _fitted(path, name, array, shape, leaf) -> np.ndarray:
    """An array of the file in our order of axes and of the shape that is wanted."""
    # Some files keep the vectors of batch normalisation as [1, c].
    if len(shape) == 1 and array.size == shape[0]:
        array = array.reshape(-1)
    given = array.shape
    array = _from_torch(array, leaf, len(shape))
    if leaf[-1] == "pos_embed" and array.ndim == 3 and array.shape != shape:
        array = _resized_positions(array, shape)
    grey = leaf[-1] == "kernel" and len(shape) == 4 and shape[2] == 1
    if grey and array.ndim == 4 and array.shape[2] == 3:
        array = array.sum(axis=2, keepdims=True)
    if array.shape != shape:
        raise InputError(
            f"{path}: {name} is of shape {list(given)}, which does not fit "
            f"{'/'.join(leaf)} of shape {list(shape)}; choose a file of this network, "
            "with images of 1 or 3 channels."
        )
    return np.ascontiguousarray(array, np.float32)


def _from_torch(array, leaf, rank):
    if leaf[-1] != "kernel":
        return array
    if rank == 2:  # a linear map, or a 1x1 convolution of one pixel
        return array.reshape(array.shape[:2]).T if array.size else array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _to_torch(array, leaf):
    if leaf[-1] != "kernel":
        return array
    # The kernels of several heads stand one behind the other.
    if array.ndim < 4:
        return np.swapaxes(array, -1, -2)
    return np.moveaxis(array, (-1, -2), (-4, -3))


def _from_ours(array, leaf):
    """The inverse of `_to_torch`."""
    if leaf[-1] != "kernel":
        return array
    if array.ndim < 4:
        return np.swapaxes(array, -1, -2)
    return np.moveaxis(array, (-4, -3), (-1, -2))


def _resized_positions(array, shape):
    """Position embeddings [1, 1 + n, d] for another number of patches."""
    before, after = (round((count - 1) ** 0.5) for count in (array.shape[1], shape[1]))
    squares = (before**2 + 1, after**2 + 1) == (array.shape[1], shape[1])
    if not squares or array.shape[2] != shape[2]:
        return array
    grid = array[:, 1:].reshape(1, before, before, -1).astype(np.float32)
    grid = jax.image.resize(grid, (1, after, after, shape[2]), "cubic")
    return np.concatenate([array[:, :1], grid.reshape(1, after**2, -1)], axis=1)


def _placed(module, arrays, image_shape):
    """The arrays in the tree of the module, wherever it has that part of a backbone."""
    tree = {}
    for path, leaf in _shapes(module, image_shape).items():
        for start in range(1, len(path)):
            array = arrays.get(path[start:])
            if array is not None:
                tree[path] = np.broadcast_to(array, leaf.shape)
                break
    return unflatten_dict(tree)
