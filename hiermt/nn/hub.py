"""Models on the Hugging Face Hub: ``pip install 'hiermt[hub]'``."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hiermt.io.checkpoint import CONFIG, WEIGHTS
from hiermt.io.files import atomic_write
from hiermt.nn.pretrained import Pretrained

CARD = "README.md"


@functools.cache
def on_hub(kind: type[Pretrained]) -> Any:
    """The class `kind` with the methods of ``huggingface_hub.PyTorchModelHubMixin``.

    ``push_to_hub(repo_id)`` uploads what ``save_pretrained(folder)`` writes: weights, config and a model card. The card
    has the arguments of the model, the names of its features and, given ``model_card_kwargs={"metrics": {...}}``, the
    metrics, which may be nested, such as the content of the ``metrics.json`` of a training. Other entries of
    `model_card_kwargs`, such as ``license`` and ``language``, are fields of ``huggingface_hub.ModelCardData`` and go
    into the header of the card; tags come after those of hiermt. A card that is there is kept.

    ``from_pretrained(repo_id)`` downloads and checks weights and config, or reads them from a folder. Of the arguments
    of the mixin, `map_location` is the device of the model, and `strict` can only be ``True``: weights for a part of a
    model are refused.

    Args:
        kind (type): a model class of hiermt.

    Raises:
        ImportError: the package ``huggingface_hub`` is missing.
        TypeError: of ``save_pretrained``, an entry of `model_card_kwargs` is not a field of a card, or its tags are not
            a list of str.
        ValueError: of the methods, `config` is given, `strict` is ``False`` or `map_location` is not a device.

    Example:
        >>> Model = on_hub(hiermt.TGCN_HierarchicalMT)
        >>> Model.from_pretrained("out/model").push_to_hub("name/stocks")
        >>> model = Model.from_pretrained("name/stocks")
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError(
            "on_hub needs huggingface_hub, which is not installed; run: pip install 'hiermt[hub]'"
        ) from None
    tags = ["temporal-graph-network", "stocks"]

    class OnHub(huggingface_hub.PyTorchModelHubMixin, kind, library_name="hiermt", tags=tags):  # type: ignore[misc, valid-type]
        def save_pretrained(
            self,
            save_directory: str | Path,
            *,
            config: Any = None,
            repo_id: str | None = None,
            push_to_hub: bool = False,
            model_card_kwargs: dict[str, Any] | None = None,
            **options: Any,
        ) -> str | None:
            if config is not None:
                raise ValueError(
                    f"config: expected None, as the model writes its own, got {type(config).__name__}; leave it out"
                )
            folder, fields = Path(save_directory), model_card_kwargs or {}
            card = self.generate_model_card(**fields)
            kind.save_pretrained(self, folder)
            if not (folder / CARD).exists():
                with atomic_write(folder / CARD) as path:
                    path.write_text(str(card), encoding="utf-8")
            if not push_to_hub:
                return None
            return str(self.push_to_hub(repo_id or folder.name, model_card_kwargs=fields, **options))

        @classmethod
        def _from_pretrained(
            cls,
            *,
            model_id: str,
            backend: str = "auto",
            map_location: str | torch.device = "cpu",
            strict: bool = True,
            **options: Any,
        ) -> Any:
            if strict is not True:
                raise ValueError(f"strict: expected True, because every weight has to be there, got {strict!r}")
            device = _device(map_location)
            names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            of_hub = {name: options.pop(name) for name in names}
            folder = Path(model_id)
            if not folder.is_dir():
                folder = Path(huggingface_hub.snapshot_download(model_id, allow_patterns=[WEIGHTS, CONFIG], **of_hub))
            return cls._load(folder, backend, options).to(device)

        def generate_model_card(self, metrics: Mapping[str, Any] | None = None, **fields: Any) -> Any:
            header = _header(self._hub_mixin_info.model_card_data, fields).to_yaml()
            return huggingface_hub.ModelCard(f"---\n{header}\n---\n\n{card_text(self, kind.__name__, metrics)}")

        def __reduce__(self) -> tuple[Any, ...]:
            # The class has no name in this module by which pickle would find it.
            return _empty, (kind,), self.__dict__

    OnHub.__name__ = OnHub.__qualname__ = kind.__name__  # the config names the class
    return OnHub


def _empty(kind: Any) -> Any:
    """A model without parameters, to which its state is given."""
    found = on_hub(kind)
    return found.__new__(found)


def _device(map_location: Any) -> torch.device:
    try:
        return torch.device(map_location)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"map_location: expected a device such as 'cpu' or 'cuda:1', got {map_location!r}") from error


def _header(data: Any, fields: Mapping[str, Any]) -> Any:
    """The ``ModelCardData`` of a class with `fields` in it."""
    known = set(inspect.signature(type(data).__init__).parameters)
    known -= {"self", "metrics", "eval_results", "ignore_metadata_errors", "kwargs"}
    if unknown := sorted(fields.keys() - known):
        raise TypeError(
            f"model_card_kwargs: expected 'metrics' or fields of a model card ({', '.join(sorted(known))}), got "
            f"{', '.join(map(repr, unknown))}"
        )
    tags = fields.get("tags", [])
    if not isinstance(tags, (list, tuple)) or not all(isinstance(tag, str) for tag in tags):
        raise TypeError(f"model_card_kwargs: tags: expected a list of str, got {tags!r}")
    data = copy.deepcopy(data)
    for name, value in fields.items():
        setattr(data, name, list(dict.fromkeys([*data.tags, *value])) if name == "tags" else value)
    return data


def card_text(model: Any, name: str, metrics: Mapping[str, Any] | None = None) -> str:
    """Text of a model card in Markdown, below its header.

    Args:
        model (Module): a model of hiermt.
        name (str): of its class.
        metrics (mapping, optional): figures, which may be nested. (default: none)

    Raises:
        TypeError: `metrics` is not a mapping.
    """
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(f"metrics: expected a mapping, got {type(metrics).__name__}")
    config = dict(model.config)
    features = config.pop("feature_names", None)
    count = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        f"# {name}",
        "",
        f"A temporal graph network for stocks with {count:,} parameters, made with hiermt.",
        "",
        "```python",
        "import hiermt",
        "from hiermt.nn.hub import on_hub",
        "",
        f'model = on_hub(hiermt.{name}).from_pretrained("<name of this repository>")',
        "```",
        "",
        "## Arguments",
        "",
        *_table(("argument", "value"), [(key, json.dumps(value)) for key, value in config.items()]),
    ]
    if features:
        lines += ["", "## Features", "", "In this order: " + ", ".join(f"`{feature}`" for feature in features) + "."]
    if metrics:
        lines += ["", "## Metrics", "", *_table(("metric", "value"), list(_flat(metrics)))]
    lines += ["", "Metrics of the past do not promise a profit.", ""]
    return "\n".join(lines)


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    escaped = [tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {one} | {other} |" for one, other in escaped)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Numbers and texts in nested mappings under dotted names; lists, such as those by epoch, are left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield f"{prefix}{key}", f"{value:.6g}"
        elif isinstance(value, (int, str)):
            yield f"{prefix}{key}", str(value)
