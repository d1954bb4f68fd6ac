"""Weights files: tensors from a file that may come from anywhere, so nothing in it is ever executed."""

import argparse
import json
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitreous.errors import InputError
from vitreous.weights.dcp import METADATA, read_dcp
from vitreous.weights.hub import shards
from vitreous.weights.mapping import Tensors

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
PART_BYTES = 1 << 26
MOST_WRAPPERS = 8
SUFFIXES = (".safetensors", ".npz", *TORCH_SUFFIXES)
WRAPPERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "timm_model.", "teacher.")


def read_tensors(path: Path) -> Tensors:
    """The tensors of a .safetensors, .npz or torch file, as float32 of our own, without wrappers and name prefixes.

    A folder that torch.distributed.checkpoint wrote is a file too.

    Raises:
        InputError: if the file is damaged, holds no tensors, or is a pickle that would run code.
    """
    if path.name.endswith(".index.json"):
        return {name: tensor for shard in shards(path) for name, tensor in read_tensors(path.with_name(shard)).items()}
    distributed = (path / METADATA).is_file()
    if path.suffix not in SUFFIXES and not distributed:
        raise InputError(f"{path} is no weights file; give one of {', '.join(SUFFIXES)}")
    try:
        found: Mapping[str, Any] = _load_dcp(path) if distributed else LOADERS.get(path.suffix, _load_torch)(path)
    except InputError:
        raise
    except DAMAGES as error:
        raise InputError(f"{path} is damaged or incomplete ({_first_line(error)}); fetch it again") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or _first_line(error)}") from error
    tensors = {str(name): value for name, value in _unwrapped(found).items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors; give the weights of a model")
    return {name: _plain(tensor, f"{path}: {name}") for name, tensor in _without_prefix(tensors).items()}


def _plain(tensor: Tensor, name: str) -> Tensor:
    """A tensor as float32; one of whole numbers, which is no weight, as it is."""
    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided or tensor.is_complex():
        kind = "without values" if tensor.is_meta else "quantised" if tensor.is_quantized else "sparse or complex"
        raise InputError(f"{name} is {kind}; save it as plain floating-point numbers")
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def _unwrapped(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict inside a training checkpoint, the averaged one where there are two."""
    for _ in range(MOST_WRAPPERS):
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    return found


def _without_prefix(tensors: Tensors) -> Tensors:
    """Names without what a wrapper module put before each of them."""
    prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in tensors)), None)
    if prefix is None:
        return tensors
    return _without_prefix({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})


def _load_torch(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it refuses anyway
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is a pickle that would run code, so it is not opened; save the tensors as .safetensors"
        ) from error
    if not isinstance(found, Mapping):
        raise InputError(f"{path} holds a {type(found).__name__}, not a state dict")
    return found


def _load_dcp(path: Path) -> Mapping[str, Any]:
    """Tensors of the model alone, where names tell which they are; an optimizer's are not read."""
    found = read_dcp(path)
    wrappers = {name.partition(".")[0] for name in found}
    wrapper = next((f"{name}." for name in WRAPPERS if name in wrappers), "")
    return {name.removeprefix(wrapper): found[name] for name in found if name.startswith(wrapper)}


def _load_safetensors(path: Path) -> Mapping[str, Any]:
    """Tensors of our own, a part of the file at a time: mapped memory counts until it is let go, and would double."""
    tensors, names = {}, None
    while names is None or names:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys()) if names is None else names
            taken = 0
            while names and taken < PART_BYTES:
                name = names.pop()
                tensor = file.get_tensor(name)
                tensors[name] = tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
                taken += tensors[name].nbytes
    return dict(reversed(tensors.items()))


def _load_npz(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("it is no archive of arrays")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {
                    name: _from_numpy(array) for name in arrays.files if (array := arrays[name]).dtype.kind in "fiuV"
                }
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise InputError(f"{path} holds pickled objects that would run code, so it is not opened") from error


def _from_numpy(array: np.ndarray) -> Tensor:
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # NumPy does not know bfloat16 and keeps its bytes
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


LOADERS = {".safetensors": _load_safetensors, ".npz": _load_npz}
DAMAGES = (
    *(SafetensorError, zipfile.BadZipFile, zlib.error),
    *(RuntimeError, EOFError, KeyError, ValueError, TypeError),  # torch's and NumPy's
)
"""What the loaders raise where a file is not as it should be."""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:120] or type(error).__name__


def read_metadata(path: Path) -> dict[str, Any]:
    """What a .safetensors file says of itself in JSON objects; empty where it says nothing."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
    except (SafetensorError, OSError):
        return {}  # `read_tensors` says what is wrong
    found = {}
    for name, text in said.items():
        with suppress(ValueError):
            found[name] = json.loads(text)
    return {name: value for name, value in found.items() if isinstance(value, dict)}


def read_config(path: Path) -> dict[str, Any]:
    """The config.json at `path`; empty if there is none.

    Raises:
        InputError: if it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is no JSON ({_first_line(error)}); fetch or write it again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is a JSON {type(config).__name__}, not an object")
    return config
