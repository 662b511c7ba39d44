"""A YAML mapping read strictly: nothing unknown, nothing missing, numbers in range."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from parallel.errors import HardwareError, did_you_mean

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(_Loader):  # type: ignore[misc]
    """PyYAML keeps the last of two equal keys; here that is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml(path: Path) -> Any:
    """Raises `HardwareError` when the file can't be read or isn't YAML."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HardwareError(f"can't read cluster file {path}: {reason}") from None
    except yaml.YAMLError as error:
        raise HardwareError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


class Fields:
    """The fields of one mapping; `where` names the file and the way to the mapping."""

    def __init__(self, value: object, where: str, known: Iterable[str]) -> None:
        self.where = where
        self._known = tuple(known)
        if not isinstance(value, Mapping):
            raise HardwareError(
                f"{where}: expected a mapping with {', '.join(self._known)}; got {value!r}"
            )
        self._value: Mapping[str, Any] = value
        for key in value:
            if key not in self._known:
                raise HardwareError(
                    f"{where}: unknown key '{key}'{did_you_mean(str(key), self._known)}; "
                    f"known: {', '.join(self._known)}"
                )

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def raw(self, key: str) -> Any:
        if key not in self:
            raise HardwareError(f"{self.where}: '{key}' is missing")
        return self._value[key]

    def text(self, key: str, legal: Collection[str] | None = None) -> str:
        value = self.raw(key)
        if not isinstance(value, str):
            raise HardwareError(f"{self.where}.{key}: expected a text, got {value!r}")
        if legal is not None and value not in legal:
            raise HardwareError(
                f"{self.where}.{key}: unknown value '{value}'{did_you_mean(value, legal)}; "
                f"legal: {', '.join(legal)}"
            )
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._value.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise HardwareError(f"{self.where}.{key}: expected a list of texts, got {value!r}")
        return tuple(value)

    def number(
        self, key: str, default: float | None = None, *, zero: bool = False, most: float = math.inf
    ) -> float:
        """A finite number above 0 (or 0 itself, where `zero`), at most `most`."""
        if default is not None and key not in self:
            return default
        return check_number(self.raw(key), f"{self.where}.{key}", zero=zero, most=most)

    def flag(self, key: str) -> bool:
        """True or false; false when left out."""
        value = self._value.get(key, False)
        if not isinstance(value, bool):
            raise HardwareError(f"{self.where}.{key}: expected true or false, got {value!r}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value != int(value):
            raise HardwareError(f"{self.where}.{key}: expected a whole number, got {value}")
        return int(value)

    def numbers(self, key: str, known: Collection[object] | None = None) -> dict[Any, float]:
        """A mapping to numbers above 0, its keys among `known` (any, when None)."""
        value = self.raw(key)
        where = f"{self.where}.{key}"
        if not isinstance(value, Mapping) or not value:
            raise HardwareError(f"{where}: expected a mapping to numbers, got {value!r}")
        for name in value:
            if known is not None and name not in known:
                words = [str(k) for k in known]
                raise HardwareError(
                    f"{where}: unknown key '{name}'{did_you_mean(str(name), words)}; "
                    f"known: {', '.join(words)}"
                )
        return {name: check_number(v, f"{where}.{name}") for name, v in value.items()}


def check_number(value: object, where: str, *, zero: bool = False, most: float = math.inf) -> float:
    """Raises `HardwareError` unless `value` is a finite number in range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise HardwareError(f"{where}: expected a number, got {value!r}")
    if value < 0 or (value == 0 and not zero):
        least = "0 or more" if zero else "more than 0"
        raise HardwareError(f"{where}: must be {least}, got {value}")
    if value > most:
        raise HardwareError(f"{where}: must be at most {most:g}, got {value}")
    return float(value)


def in_unit(value: float, unit: float) -> float:
    """The shortest number of which `unit * number` is `value`; the nearest where there is none."""
    for digits in range(3, 18):
        number = float(f"{value / unit:.{digits}g}")
        if unit * number == value:
            return number
    return value / unit
