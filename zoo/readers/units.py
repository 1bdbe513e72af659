"""Units of length and time as files spell them, to um and s."""

from __future__ import annotations

import math

_UM: dict[str, float] = {
    "ym": 1e-18, "zm": 1e-15, "am": 1e-12, "fm": 1e-9, "pm": 1e-6, "nm": 1e-3, "um": 1.0, "mm": 1e3, "cm": 1e4,
    "dm": 1e5, "m": 1e6, "dam": 1e7, "hm": 1e8, "km": 1e9, "angstrom": 1e-4, "å": 1e-4, "in": 25400.0, "ft": 304800.0,
    "yd": 914400.0, "mi": 1.609344e9, "thou": 25.4, "li": 2116.666666666667, "pt": 25400.0 / 72,
}  # fmt: skip
_S: dict[str, float] = {
    "as": 1e-18, "fs": 1e-15, "ps": 1e-12, "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "cs": 1e-2, "ds": 1e-1, "s": 1.0,
    "ks": 1e3, "min": 60.0, "h": 3600.0, "d": 86400.0,
}  # fmt: skip
_PREFIXES = {
    "yocto": "y", "zepto": "z", "atto": "a", "femto": "f", "pico": "p", "nano": "n", "micro": "u", "milli": "m",
    "centi": "c", "deci": "d", "deca": "da", "hecto": "h", "kilo": "k",
}  # fmt: skip
_ALIASES = {
    "micron": "um", "microns": "um", "inch": "in", "inches": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "angstroms": "angstrom", "sec": "s", "secs": "s", "second": "s", "seconds": "s", "msec": "ms",
    "usec": "us", "minute": "min", "minutes": "min", "hour": "h", "hours": "h", "hr": "h", "day": "d", "days": "d",
    "meter": "m", "meters": "m", "metre": "m", "metres": "m",
}  # fmt: skip


def _symbol(unit: object) -> str:
    """The symbol of a unit: `"\\u00B5m"`, `"micrometer"`, `"Micron"` -> `"um"`."""
    # ImageJ writes non-latin letters as Java escapes; OME writes either of the two mu signs
    word = str(unit).strip().replace("\\u00B5", "u").replace("\\u00b5", "u").replace("\u00b5", "u")
    word = word.replace("\u03bc", "u").replace("\u212b", "\u00e5").replace("\\u00C5", "\u00e5")
    if word in _UM or word in _S:
        return word
    word = word.lower().removesuffix(".")
    if word in _ALIASES:
        return _ALIASES[word]
    for long, short in _PREFIXES.items():
        rest = word.removeprefix(long)
        if rest != word and rest in _ALIASES:
            return short + _ALIASES[rest]
    return word


def micrometres(unit: object) -> float | None:
    """How many um one `unit` is; None for `pixel`, an unknown word or no unit."""
    return _UM.get(_symbol(unit)) if unit else None


def seconds(unit: object) -> float | None:
    """How many s one `unit` is; None for an unknown word or no unit."""
    return _S.get(_symbol(unit)) if unit else None


def scaled(value: object, factor: float | None) -> float | None:
    """`value * factor` as a positive finite number, else None: files hold zeros, NaN and negative spacings."""
    if factor is None or not isinstance(value, str | int | float):
        return None
    try:
        size = abs(float(value)) * factor
    except ValueError:
        return None
    return size if math.isfinite(size) and size > 0 else None
