"""Names of features along the last dimension of x, stored with a model and compared with those of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hiermt.data._errors import some

KEY = "feature_names"


class FeatureNames:
    """Adds :attr:`feature_names` to a module with a ``config``, in which they are saved and loaded."""

    config: dict[str, Any]

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the input features in order; ``None`` accepts any. Can be assigned."""
        names = self.config.get(KEY)
        return None if names is None else tuple(names)

    @feature_names.setter
    def feature_names(self, names: Sequence[str] | None) -> None:
        named = as_names(names, self.config["in_channels"])
        self.config.pop(KEY, None)
        if named is not None:
            self.config[KEY] = list(named)
        # A backbone can also be saved and trained alone.
        backbone = getattr(self, "tgcn_backbone", None)
        if isinstance(backbone, FeatureNames):
            backbone.feature_names = named


def as_names(names: Iterable[str] | None, count: int) -> tuple[str, ...] | None:
    """The names as a tuple of plain strings; ``None`` stays ``None``.

    Raises:
        TypeError: they are not a sequence of strings.
        ValueError: there are not `count` of them, or a name is repeated.
    """
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{KEY}: expected a sequence of {count} strings, got {names!r}")
    found = tuple(names)
    for name in found:
        if not isinstance(name, str):
            raise TypeError(f"{KEY}: expected strings, got {name!r}")
    if len(found) != count:
        raise ValueError(f"{KEY}: expected {count} names, one per feature, got {len(found)}: {some(found, 16)}")
    for i, name in enumerate(found):
        if name in found[:i]:
            raise ValueError(f"{KEY}: {name!r} is there twice; give each feature its own name")
    return tuple(map(str, found))


def check_same(
    source: object, found: Sequence[str] | None, expected: Sequence[str] | None, owner: str = "the model"
) -> None:
    """Raises ValueError with the first difference between the features of `source` and those of `owner`.

    No names on either side means no comparison.
    """
    if found is None or expected is None or tuple(found) == tuple(expected):
        return
    i = next((i for i, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), None)
    if i is None:
        reason = f"has {len(found)} features, {owner} {len(expected)}"
        longer, extra = (found, "only here") if len(found) > len(expected) else (expected, "missing here")
        reason += f"; {longer[min(len(found), len(expected))]!r} is {extra}"
    else:
        reason = f"feature {i} is {found[i]!r}, that of {owner} {expected[i]!r}"
    if sorted(found) == sorted(expected):
        reason += " (the same features in another order)"
    raise ValueError(f"{source}: {reason}; give the features {some(expected, 16)} in this order")


def names_of(holder: Any) -> tuple[str, ...] | None:
    """Names of a model, a dataset, or a loader or wrapper around one; ``None`` without names."""
    for _ in range(8):  # loaders, subsets and wrappers around a model or a dataset
        names = getattr(holder, KEY, None)
        if isinstance(names, tuple):
            return names
        inner = getattr(holder, "dataset", None)
        holder = getattr(holder, "module", None) if inner is None else inner
        if holder is None:
            break
    return None
