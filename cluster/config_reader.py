"""From YAML, builder arguments and `--set key=value` to a `MantaConfig`; says exactly what is wrong.

A flat mapping (`model`, `replicas`, `engine`, ... at the top) is shorthand for one model.
"""

import difflib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import yaml

from cluster.config import MantaConfig, ModelConfig
from engine.errors import ConfigError

Settings = dict[str, Any]


def read_config(
    settings: Mapping[str, Any] | None = None, *, file: str | Path | None = None, overrides: Iterable[str] = ()
) -> MantaConfig:
    """Merge the file, then `settings`, then `overrides` ("gateway.port=8001"), and validate once."""
    merged = normalise(_read_file(file)) if file is not None else {}
    for key, value in normalise(dict(settings or {})).items():
        merged = _merge(merged, {key: value})
    for override in overrides:
        _apply_override(merged, override)
    return convert(merged)


def convert(settings: Settings) -> MantaConfig:
    """Validate a nested mapping."""
    _refuse_unknown(settings, MantaConfig, "")
    try:
        return msgspec.convert(settings, MantaConfig, strict=False)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        key = where.rstrip("`").lstrip(".") or "configuration"
        raise ConfigError(key, _value_at(settings, key), reason[0].lower() + reason[1:] + _choices(key)) from None


def normalise(settings: Settings) -> Settings:
    """Turn the one-model shorthand into the full form."""
    model_keys = [key for key in settings if key in ModelConfig.__struct_fields__]
    if not model_keys:
        return settings
    if "models" in settings:
        raise ConfigError(model_keys[0], settings[model_keys[0]], "put it inside an entry of `models`")
    rest = {key: value for key, value in settings.items() if key not in model_keys}
    return {**rest, "models": [{key: settings[key] for key in model_keys}]}


def _read_file(file: str | Path) -> Settings:
    try:
        loaded = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("--config", str(file), f"cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError("--config", str(file), f"is not valid YAML: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError("--config", str(file), "must hold a mapping such as `gateway: {port: 8000}`")
    return loaded


def _merge(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return {key: _merge(below.get(key), above.get(key, below.get(key))) for key in {**below, **above}}
    if isinstance(below, list) and isinstance(above, list) and len(below) == len(above) == 1:
        return [_merge(below[0], above[0])]
    return above


def _apply_override(settings: Settings, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError("--set", override, "write key=value, for example gateway.port=8001")
    value = yaml.safe_load(text)
    *path, last = key.split(".")
    if (path or [last])[0] in ModelConfig.__struct_fields__:
        models = settings.setdefault("models", [{}])
        if len(models) != 1:
            raise ConfigError("--set", override, f"which model? write models.0.{key}={text}")
        path = ["models", "0", *path]
    node: Any = settings
    for part in path:
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError("--set", override, f"there is no entry {part!r}; {len(node)} models are configured")
            node = node[int(part)]
        else:
            node = node.setdefault(part, [{}] if part == "models" else {})
        if not isinstance(node, dict | list):
            raise ConfigError("--set", override, f"{part!r} holds a value, not further settings")
    if isinstance(node, list):
        raise ConfigError("--set", override, "name a field of the model, for example models.0.replicas=2")
    node[last] = value


def _refuse_unknown(settings: Any, kind: type, where: str) -> None:
    """Name the first key that `kind` does not have, with the nearest one it has."""
    if not isinstance(settings, Mapping):
        return
    hints = get_type_hints(kind)
    for key, value in settings.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in hints:
            near = difflib.get_close_matches(str(key), list(hints), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(sorted(hints))}"
            raise ConfigError(path, value, f"unknown key; {hint}")
        inner = hints[key]
        if get_origin(inner) is tuple and isinstance(value, list):
            for number, item in enumerate(value):
                _refuse_unknown(item, get_args(inner)[0], f"{path}[{number}]")
        elif isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            _refuse_unknown(value, inner, path)


def _choices(key: str) -> str:
    """The values an enumerated field takes, as a remedy; empty for other fields."""
    kind: Any = MantaConfig
    for part in key.replace("[...]", "").split("."):
        kind = get_type_hints(kind).get(part.partition("[")[0])
        if get_origin(kind) is tuple:
            kind = get_args(kind)[0]
        if not isinstance(kind, type):
            return ""
    return f"; use one of {', '.join(kind)}" if issubclass(kind, StrEnum) else ""


def _value_at(settings: Any, key: str) -> Any:
    node = settings
    for part in key.replace("[", ".").replace("]", "").split("."):
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return node
