"""Names of features, in the order of the last dimension of x: kept with a model, and compared where it is fed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hiermt.data._errors import some

KEY = "feature_names"


class FeatureNames:
    """Adds :attr:`feature_names` to a module that has a ``config``; they are saved and loaded with it."""

    config: dict[str, Any]

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the features that the model reads, in order; ``None`` if it takes any. Assign to change them."""
        names = self.config.get(KEY)
        return None if names is None else tuple(names)

    @feature_names.setter
    def feature_names(self, names: Sequence[str] | None) -> None:
        named = as_names(names, self.config["in_channels"])
        self.config.pop(KEY, None)
        if named is not None:
            self.config[KEY] = list(named)
        # A backbone can be saved and trained by itself.
        backbone = getattr(self, "tgcn_backbone", None)
        if isinstance(backbone, FeatureNames):
            backbone.feature_names = named


def as_names(names: Iterable[str] | None, count: int) -> tuple[str, ...] | None:
    """The names as a tuple of plain strings; ``None`` stays ``None``.

    Raises:
        TypeError: they are not a sequence of strings.
        ValueError: there are not `count` of them, or one is there twice.
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
            raise ValueError(f"{KEY}: {name!r} is there twice; give each feature a name of its own")
    return tuple(map(str, found))


def check_same(
    source: object, found: Sequence[str] | None, expected: Sequence[str] | None, owner: str = "the model"
) -> None:
    """Raises ValueError with the first difference between the features of `source` and those of `owner`.

    Nothing is compared where one of the two has no names.
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
    """Names that a model, a dataset, or a loader over one carries; ``None`` if there are none."""
    for _ in range(8):  # loaders, subsets and wrappers around a model or a dataset
        names = getattr(holder, KEY, None)
        if isinstance(names, tuple):
            return names
        inner = getattr(holder, "dataset", None)
        holder = getattr(holder, "module", None) if inner is None else inner
        if holder is None:
            break
    return None
