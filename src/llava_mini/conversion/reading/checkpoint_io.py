# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Checkpoints of any size, read and written a piece at a time: a checkpoint is a dictionary of `LazyTensor`s, which know
their shape and read their data when asked, and is written a shard at a time.
"""

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath

import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME


WEIGHT_FILE_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
WEIGHT_FILE_NAMES = (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME)
# In a directory that is being written; see output_directory.py.
IN_PROGRESS = "CONVERSION_IN_PROGRESS"


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read or computed when `load()` is called, and not kept."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> "LazyTensor":
        """Rows `start` to `stop` of it."""
        return LazyTensor((stop - start, *self.shape[1:]), self.dtype, lambda: self.load()[start:stop])


Tensors = dict[str, LazyTensor]


def locate(name: str, relative_to: Path, file_patterns: tuple[str, ...], hint: str) -> Path:
    """
    The directory that `name` means: one seen from the directory `relative_to`, one seen from here, or a copy of the
    files `file_patterns` of the Hub repository of that name.

    Args:
        hint: what to do when there is none, for the error.

    Raises:
        ValueError: `name` is neither a directory nor a repository that can be reached.
    """
    if local := find_local(name, relative_to):
        return local
    try:
        return Path(snapshot_download(name, allow_patterns=list(file_patterns)))
    except (HFValidationError, OSError) as error:
        raise ValueError(
            f"{name!r} is neither a directory nor a Hub repository that can be reached: {hint}."
        ) from error


def find_local(name: str, relative_to: Path) -> Path | None:
    """The directory `name`, seen from `relative_to` or else from here; `None` when there is none."""
    return next((path for path in (relative_to / name, Path(name)) if path.is_dir()), None)


def read_checkpoint(directory: Path, file_names: tuple[str, ...] = WEIGHT_FILE_NAMES) -> Tensors:
    """
    The tensors of the first of `file_names` that the directory has: an index of shards, safetensors or .bin.

    Raises:
        ValueError: no such file, a shard that is missing, a file that can't be read.
    """
    name = next((name for name in file_names if (directory / name).is_file()), None)
    if name is None:
        raise ValueError(f"{directory} has no weights: expected one of {', '.join(file_names)} there.")
    if not name.endswith(".index.json"):
        return read_weights_file(directory / name)
    weight_map = read_json(directory / name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(f"{directory / name} has no `weight_map` of names to files: download this file again.")
    tensors: Tensors = {}
    for shard in sorted(set(weight_map.values())):
        # Windows' rules know both kinds of slashes.
        if PureWindowsPath(shard).anchor or ".." in PureWindowsPath(shard).parts:
            raise ValueError(f"{directory / name} lists {shard!r}, which is not in its folder: do not trust this file.")
        if not (directory / shard).is_file():
            raise ValueError(f"{directory / shard} is missing, but {name} lists it: download this file.")
        tensors |= read_weights_file(directory / shard)
    if absent := sorted(set(weight_map) - set(tensors)):
        raise ValueError(
            f"{name} lists {len(absent)} tensor(s) that no shard in {directory} holds, such as {absent[0]!r}: "
            "download index and shards again, from one revision."
        )
    return tensors


def read_weights_file(path: Path) -> Tensors:
    """
    The tensors of one safetensors or .bin file (read with `weights_only`: no code in it runs).

    Raises:
        ValueError: the file can't be read.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            load = _load_safetensors
        else:
            _check_sums(path)
            tensors, load = _open_bin(path), _load_bin
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, OSError) as error:
        first_line = str(error).strip().split("\n")[0]
        hint = "it is truncated, damaged or no weights file; download it again"
        if path.suffix != ".safetensors" and not zipfile.is_zipfile(path):
            hint = "it is truncated, so download it again, or older than PyTorch 1.6, so save it anew with torch.save"
        raise ValueError(f"{path} can't be read ({first_line}): {hint}.") from error
    if not isinstance(tensors, dict) or not all(map(_is_plain, tensors.values())):
        raise ValueError(
            f"{path} holds something other than tensors by their names, dense ones: save a plain state dict."
        )
    if not tensors:
        raise ValueError(f"{path} holds no tensors: download it again.")
    return {key: LazyTensor(tuple(t.shape), t.dtype, partial(load, path, key)) for key, t in tensors.items()}


def _is_plain(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta


def _load_safetensors(path: Path, key: str) -> torch.Tensor:
    # Opened anew each time: a mapped file counts as memory in use, page by page, until it is closed.
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(key)


def _load_bin(path: Path, key: str) -> torch.Tensor:
    return _open_bin(path)[key].contiguous()


def _check_sums(path: Path) -> None:
    """PyTorch writes a checksum beside every tensor of a .bin file, and does not look at it when it maps the file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def _open_bin(path: Path) -> dict:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def read_json(path: Path) -> dict:
    """
    The JSON object in a file.

    Raises:
        ValueError: no such file, or no JSON object in it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist: give the directory of a checkpoint with its {path.name}.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} can't be read as JSON ({error}): download it again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object: download it again.")
    return value


def write_json(path: Path, value: dict) -> None:
    """Writes a JSON file as transformers does."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; takes no memory."""
    return tensor.numel() == 0 or all(torch.isfinite(end) for end in torch.aminmax(tensor))


def write_checkpoint(tensors: Tensors, directory: Path, max_shard_size: int | str, show_progress: bool) -> list[str]:
    """
    Writes `tensors` as safetensors into `directory`, one shard in memory at a time, and their index.

    Returns:
        Names of tensors with NaN or infinite values.

    Raises:
        ValueError: a file can't be written.
    """
    empty = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in tensors.items()}
    plan = split_torch_state_dict_into_shards(empty, max_shard_size=max_shard_size)
    total = sum(tensor.nbytes for tensor in tensors.values())
    not_finite: list[str] = []
    with tqdm(total=total, unit="B", unit_scale=True, desc="Weights", disable=not show_progress) as bar:
        for file_name, names in plan.filename_to_tensors.items():
            shard = {name: tensors[name].load() for name in names}
            not_finite += [name for name in names if not is_finite(shard[name])]
            try:
                save_file(shard, directory / file_name, metadata={"format": "pt"})
            except SafetensorError as error:
                raise ValueError(f"{directory / file_name} can't be written ({error}): is the disk full?") from error
            bar.update(sum(tensors[name].nbytes for name in names))
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": dict(sorted(plan.tensor_to_filename.items()))}
        write_json(directory / SAFE_WEIGHTS_INDEX_NAME, index)
    return not_finite
