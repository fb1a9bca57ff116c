"""From the bytes of a request body to a typed request; says which field is wrong, its value, and what is right."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from cluster.errors import InvalidRequest

T = TypeVar("T")

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_MAX_SHOWN_CHARS = 64


def decode_body(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Parse and validate once. Of a key given twice the last value counts, for everyone who reads the request."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error), _parsed(body)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InvalidRequest(f"The body is not JSON in UTF-8: {reason}", code="invalid_json") from None


def convert_fields(fields: Mapping[str, Any], type_: type[T]) -> T:
    """The same for fields given in Python."""
    try:
        msgspec.json.encode(fields)
        return msgspec.convert(fields, type_)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error), fields) from None
    except (UnicodeEncodeError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"The fields cannot be written as JSON: {error}", code="invalid_json") from None


def shown(value: object) -> str:
    """A value as an error message shows it: numbers and short texts; of others only what they are."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float | str):
        text = repr(value)
        return _short(text)
    if isinstance(value, list | tuple | dict):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return f"a {type(value).__name__}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}... ({len(text)} characters)"


def _invalid_field(reason: str, fields: Any) -> InvalidRequest:
    reason, _, path = reason.partition(" - at `")
    path = path.rstrip("`").removeprefix("$")
    if unknown := _UNKNOWN.fullmatch(reason):
        param = _short(f"{path}.{unknown[1]}".lstrip("."))
        return InvalidRequest(
            f"`{param}` is not a parameter of this endpoint; leave it out (`/docs` lists them all).",
            param,
            "unknown_parameter",
        )
    if missing := _MISSING.fullmatch(reason):
        param = f"{path}.{missing[1]}".lstrip(".")
        return InvalidRequest(f"`{param}` is missing; it is required.", param, "missing_required_parameter")
    param = _short(path.replace("[...]", "").lstrip("."))
    value = "" if "[...]" in path or not param else f" is {shown(_value_at(fields, path))}"
    code = "invalid_type" if ", got `" in reason else "invalid_value"
    wrong = reason[:1].lower() + reason[1:]
    return InvalidRequest(f"`{param or 'body'}`{value}: {wrong}.", param or None, code)


def _parsed(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _value_at(fields: Any, path: str) -> Any:
    for name, index in _STEP.findall(path):
        try:
            fields = fields[name] if name else fields[int(index)]
        except (KeyError, IndexError, TypeError):
            return None
    return fields
