"""Markdown tables: of the fields of msgspec structs (name, type with limits, default, description), and of metrics."""

import types
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from cluster.metrics.declared import Metric

ANYTHING = "anything"


def fields_with_hints(kind: type[msgspec.Struct]) -> Iterator[tuple[msgspec.structs.FieldInfo, Any]]:
    """Each field of a struct and its type as written, `Annotated` included."""
    hints = get_type_hints(kind, include_extras=True)
    return ((field, hints[field.name]) for field in msgspec.structs.fields(kind))


def configuration_table(fields: Iterable[tuple[msgspec.structs.FieldInfo, Any]]) -> list[str]:
    """Key, type, default, meaning."""
    rows = [row(f"`{field.name}`", type_name(hint), default_text(field), description(hint)) for field, hint in fields]
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows]


def body_table(fields: Iterable[tuple[msgspec.structs.FieldInfo, Any]]) -> list[str]:
    """Field, type, meaning, of what a client sends; fields of any type that mean the same share a row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for field, hint in fields:
        name = f"`{field.encode_name}`" + (" (required)" if field.required else "")
        plain, meaning = type_name(hint), description(hint)
        shared = plain == ANYTHING and meaning
        rows.setdefault((plain, meaning if shared else f"{meaning}\0{name}"), []).append(name)
    lines = [row(", ".join(names), plain, meaning.split("\0")[0]) for (plain, meaning), names in rows.items()]
    return ["| field | type | meaning |", "|---|---|---|", *lines]


def row(*cells: str) -> str:
    """One line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def strip_annotation(hint: Any) -> tuple[Any, msgspec.Meta | None]:
    """The bare type and its `Meta`."""
    if get_origin(hint) is Annotated:
        plain, *notes = get_args(hint)
        return plain, next((note for note in notes if isinstance(note, msgspec.Meta)), None)
    return hint, None


def description(hint: Any) -> str:
    """What a type's `Meta`, or that of a part of it, says."""
    plain, meta = strip_annotation(hint)
    if meta is not None and meta.description:
        return meta.description
    if get_origin(plain) in (Union, types.UnionType):
        return next((text for part in get_args(plain) if (text := description(part))), "")
    return ""


def type_name(hint: Any) -> str:
    """A type and its limits as a reader of YAML or JSON knows them."""
    plain, meta = strip_annotation(hint)
    return ", ".join([plain_type_name(plain), *(limits(meta, plain) if meta else ())])


def plain_type_name(plain: Any) -> str:
    """A type without limits."""
    origin, arguments = get_origin(plain), get_args(plain)
    if isinstance(plain, type) and issubclass(plain, Enum):
        return " or ".join(f"`{member.value}`" for member in plain)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in arguments if part is not type(None))
    if origin in (tuple, list):
        inner = type_name(arguments[0])
        return f"list of ({inner})" if " or " in inner or ", " in inner else f"list of {inner}"
    if origin is dict:
        return "object" if arguments[1] is Any else f"object of ({type_name(arguments[1])})"
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        return "object"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Any: ANYTHING}
    return names.get(plain, str(plain))


def limits(meta: msgspec.Meta, plain: Any) -> list[str]:
    """The range of a number; the length of a text, list or object."""
    if meta.ge == -(2**63):
        return ["64 bits"]
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
    found = [f"{sign} {value}" for name, sign in signs if (value := getattr(meta, name)) is not None]
    if meta.min_length:
        found.append("not empty" if meta.min_length == 1 else f"at least {meta.min_length}")
    if meta.max_length is not None:
        found.append(f"at most {meta.max_length} {'characters' if plain is str else 'entries'}")
    return found


def default_text(field: msgspec.structs.FieldInfo) -> str:
    """The value a field has when nothing is written."""
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None or value == "":
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def metrics_table(metrics: Iterable[Metric]) -> list[str]:
    """Name, kind, labels, meaning."""
    rows = [
        row(f"`{metric.name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help.strip())
        for metric in metrics
    ]
    return ["| metric | kind | further labels | meaning |", "|---|---|---|---|", *rows]
