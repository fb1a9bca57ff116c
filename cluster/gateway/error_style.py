"""How an endpoint words its errors: OpenAI's way, or that of another protocol."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from cluster.api.schema import ErrorResponse
from cluster.errors import ApiError

SCOPE_KEY = "error_style"  #: of an ASGI scope, set before an endpoint runs


class ErrorAnswer(NamedTuple):
    """Status and JSON body."""

    status: int
    body: bytes


class ErrorStyle(NamedTuple):
    """What words an error, and the type of the body that it makes."""

    word: Callable[[ApiError], ErrorAnswer]
    schema: type[msgspec.Struct]


class KserveError(msgspec.Struct, frozen=True, kw_only=True):
    error: str


class TgiError(msgspec.Struct, frozen=True, kw_only=True):
    error: str
    error_type: str


def _word_as_openai(error: ApiError) -> ErrorAnswer:
    return ErrorAnswer(error.status, msgspec.json.encode(error.body()))


def _word_as_kserve(error: ApiError) -> ErrorAnswer:
    return ErrorAnswer(error.status, msgspec.json.encode(KserveError(error=error.message)))


def _word_as_tgi(error: ApiError) -> ErrorAnswer:
    """With the statuses that TGI's clients know."""
    status, kind = error.status, "generation"
    if status in (400, 404, 413, 415):
        status, kind = (422 if status == 400 else status), "validation"
    elif status in (429, 503):
        status, kind = 429, "overloaded"
    elif status == 500:
        status = 424
    return ErrorAnswer(status, msgspec.json.encode(TgiError(error=error.message, error_type=kind)))


OPENAI_STYLE = ErrorStyle(_word_as_openai, ErrorResponse)
KSERVE_STYLE = ErrorStyle(_word_as_kserve, KserveError)
TGI_STYLE = ErrorStyle(_word_as_tgi, TgiError)
