"""Arguments of specs: fields for channels, and rules that derive an argument from another argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any


def set_fields(spec: Any, **values: Any) -> None:
    """Set fields of a frozen spec in place to `values`, which are checked. Call this in __post_init__ only."""
    for name, value in values.items():
        object.__setattr__(spec, name, value)


def channels_of(name: str) -> Any:
    """Return a required dataclass field of a spec for the number of channels of input `name`."""
    return field(metadata={"channels_of": name})


def rule_for(name: str) -> Any:
    """Return a dataclass field, None by default, for an argument that derives argument `name` while that is None.

    Such an argument is called a rule: `reduction` is a rule for `reduced_channels`, for example. If `name` is given
    too, the rule has no effect, and `refuse_idle_rules` raises an error. `arguments` leaves rules out.
    """
    return field(default=None, compare=False, metadata={"rule_for": name})


def refuse_idle_rules(spec: Any) -> None:
    """Raise ValueError if a rule and its derived argument are both given, because the rule then has no effect.

    Call this first in __post_init__.
    """
    for rule in fields(spec):
        name, value = rule.metadata.get("rule_for"), getattr(spec, rule.name)
        if name and value is not None and getattr(spec, name) is not None:
            got = f"{rule.name}={value!r} and {name}={getattr(spec, name)!r}"
            raise ValueError(f"expected {rule.name} or {name}, not both, got {got}: leave one out")


def arguments(spec: Any) -> dict[str, Any]:
    """Return the fields of a spec as name -> value. They create an equal spec. Fields of `rule_for` are left out."""
    return {field.name: getattr(spec, field.name) for field in fields(spec) if "rule_for" not in field.metadata}


def upgraded(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of spec class `cls` from a config that this or an older version wrote.

    `cls` may convert the config itself first, in a class method `upgraded(config)`, which returns a mapping.
    """
    upgrade_config = getattr(cls, "upgraded", None)
    return without_idle_rules(cls, upgrade_config(config) if upgrade_config else config)


def without_idle_rules(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` without those fields of `rule_for` whose derived argument is also in `config`.

    Older versions wrote both, for example `reduction` and `reduced_channels`.
    """
    derived = {field.name: field.metadata["rule_for"] for field in fields(cls) if "rule_for" in field.metadata}
    without_effect = [name for name, argument in derived.items() if config.get(argument) is not None]
    return {name: value for name, value in config.items() if name not in without_effect}


def make_divisible(value: float, divisor: int = 8, round_limit: float = 0.9) -> int:
    """Return the nearest multiple of divisor, ties up, at least divisor, plus divisor if below round_limit * value.

    Source: MobileNet's reference code, as in timm 1.0.31, timm/layers/helpers.py.

    >>> [make_divisible(c / 16, 8, 0.0) for c in (64, 200, 512)], [make_divisible(c / 4) for c in (24, 40, 72)]
    ([8, 16, 32], [8, 16, 24])
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * value else rounded
