"""Reading and writing tensor files. A file may be damaged or hostile: no code in it is executed."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Limit of the safetensors format.
LONGEST_HEADER = 100_000_000
# First bytes of torch.save files that are not zip archives.
_LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_OBJECTS = (
    "it {}, which cannot be read without running the code in it; write the tensors alone, "
    "torch.save(model.state_dict(), path), where the file comes from"
)
_NAMED = re.compile(r"(?:GLOBAL|[Uu]nsupported (?:global|class|type)|function)\W+(?:GLOBAL )?([\w.]+\.[\w.]+)")


class Unreadable(ValueError):
    """A file is not a checkpoint; the message says why."""


def read_tensor_file(path: Path) -> tuple[Any, dict[str, str]]:
    """Content of a safetensors or ``torch.save`` file; the latter has no metadata.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is truncated or malformed, or cannot be read without running code in it.
        ImportError: the package ``safetensors`` is missing.
    """
    if not path.is_file():
        what = "is a folder without config.json" if path.is_dir() else "not found"
        raise FileNotFoundError(f"{path}: {what}")
    try:
        if path.stat().st_size == 0:
            raise Unreadable("the file is empty")
        if path.suffix == ".safetensors" or _looks_like_safetensors(path):
            load_file, _ = safetensors_io()
            metadata = _safetensors_metadata(path)
            return load_file(str(path)), metadata
        return _read_torch(path), {}
    except ImportError:
        raise
    except Unreadable as error:
        raise ValueError(f"{path}: not a readable checkpoint: {error}") from None
    except Exception as error:  # the readers raise exceptions of many types for a bad file
        raise ValueError(f"{path}: not a readable checkpoint: it is damaged ({_first_line(error)})") from None


def write_tensors(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a ``.safetensors`` file.

    Raises:
        OSError: it cannot be written.
    """
    # Through memory: safetensors' own writer puts another file in the place of this one, which then loses its lock, and
    # a process that writes into the same folder would sweep it.
    path.write_bytes(_with_sorted_metadata(safetensors_io()[1](state, metadata=metadata)))


def parse_json(text: str) -> Any:
    """Parses standard JSON: without NaN, Infinity and duplicate keys.

    Raises:
        ValueError: it is not standard JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is there twice")
        return found

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _looks_like_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _safetensors_metadata(path: Path) -> dict[str, str]:
    """Validates the header before the reader trusts it; returns its metadata."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > min(size - 8, LONGEST_HEADER):
            raise Unreadable(f"its header claims {length} bytes, the file has {size}")
        try:
            header = parse_json(file.read(length).decode("utf-8"))
        except ValueError as error:
            raise Unreadable(f"its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise Unreadable(f"its header is a {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Unreadable("the metadata in its header are not strings")
    for name, entry in header.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:  # type: ignore[arg-type]
            raise Unreadable(f"its header does not describe {name}")
        if not offsets[0] <= offsets[1] <= size - 8 - length:  # type: ignore[index]
            raise Unreadable(f"its header puts {name} outside of the file, which is truncated or damaged")
    return metadata


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _read_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        check_zip(path)
    else:
        with open(path, "rb") as file:
            head = file.read(16)
        if head[:1] == b"\x80" and _LEGACY not in head:
            raise Unreadable(_OBJECTS.format("is a plain pickle"))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        text = str(error)
        if re.search(r"GLOBAL|[Uu]nsupported (?:global|class|type)|unrecognized function", text):
            named = _NAMED.search(text)
            what = f"holds Python objects ({named[1]})" if named else "holds Python objects"
            raise Unreadable(_OBJECTS.format(f"{what}, as torch.save(model) writes them")) from None
        reason = text.partition("WeightsUnpickler error: ")[2] or text.partition("Please file an issue")[0]
        raise Unreadable(f"it is damaged, or not a file of torch.save ({_first_line(reason)})") from None


def check_zip(path: Path) -> None:
    """Raises :class:`Unreadable` for a TorchScript archive, and for records that claim more bytes than the file has."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise Unreadable("it is a TorchScript archive; give torch.jit.load(path) instead of the path")
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size:
        raise Unreadable(f"its records claim {claimed} bytes, the file has {size}")


def _first_line(error: Exception | str) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"\x1b\[[0-9;]*m", "", line)[:200]


def _with_sorted_metadata(content: bytes) -> bytes:
    """Sorts the metadata of a safetensors file: the order of its writer varies between runs."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    ordered = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items())), **header}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    return content if len(text) > length else content[:8] + text.ljust(length) + content[8 + length :]


def safetensors_io() -> tuple[Any, Any]:
    """``load_file`` and ``save``, which returns bytes.

    Raises:
        ImportError: the package ``safetensors`` is missing.
    """
    try:
        from safetensors.torch import load_file, save
    except ImportError:
        raise ImportError("reading and writing checkpoints needs safetensors: pip install 'hiermt[train]'") from None
    return load_file, save
