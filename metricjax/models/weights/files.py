"""Files of named arrays: read as data alone, whatever they claim to be."""

import os
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from metricjax.errors import InputError

_KINDS = "a safetensors, npz or PyTorch (.pth) file of weights"


def read(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a file, float32, by name.

    Raises:
      InputError: the file is missing, cut short, of another kind, holds more than
        arrays, or is PyTorch's and torch is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} was not found: name {_KINDS}.")
    kind = _kind(path)
    if kind is None:
        raise InputError(f"{path} is not {_KINDS}, by what it begins with.")
    try:
        arrays = {"safetensors": _safetensors, "npz": _npz, "torch": _torch}[kind](path)
    except InputError:
        raise
    # Each library has a dozen types for a file that is short or damaged.
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as a {kind} file, it is cut short or damaged "
            f"({_first_sentence(error)}): get it again."
        ) from error
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def write(path: str | Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a safetensors file; one of that name is replaced once this is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        safetensors.numpy.save_file(tensors, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _kind(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(16)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        return "npz" if all(name.endswith(".npy") for name in names) else "torch"
    if start[8:9] == b"{":
        return "safetensors"
    if start[:2] == b"PK":
        return "npz" if path.suffix == ".npz" else "torch"
    # What PyTorch wrote before it wrote zip files.
    return "torch" if start[:1] == b"\x80" else None


def _safetensors(path):
    arrays = {}
    with safetensors.safe_open(path, framework="flax") as file:
        for name in file.keys():
            arrays[name] = np.asarray(file.get_tensor(name), np.float32)
    return arrays


def _npz(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _torch(path):
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} is PyTorch's, and torch is not installed to read it: install it "
            "(pip install torch), or convert the file to safetensors."
        ) from None
    from pickle import UnpicklingError

    try:
        with warnings.catch_warnings(action="ignore"):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # Torch's own words are many, and advise to run what is in the file.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        more = f" ({named[1]})" if named else ""
        raise InputError(
            f"{path} is a pickle with more than arrays in it{more}: it is not opened, "
            "as it could run code; save the model's state_dict() alone, or as "
            "safetensors."
        ) from error
    while isinstance(held, dict) and not any(map(torch.is_tensor, held.values())):
        inner = [key for key in ("state_dict", "model", "teacher") if key in held]
        if not inner:
            break
        held = held[inner[0]]
    if not isinstance(held, dict):
        raise InputError(
            f"{path} holds a {type(held).__name__}, not a state_dict: save the model's "
            "state_dict()."
        )
    tensors = {name: value for name, value in held.items() if torch.is_tensor(value)}
    return {name: value.float().numpy() for name, value in tensors.items()}


def _first_sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0][:160].rstrip(".:")
