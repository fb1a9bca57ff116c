"""Errors of the HTTP exchange itself, before a body has been understood.

ApiError
  UnknownPath            404   no such path
  RequestNotFound        404   no report of such a call, or another tenant's
  MethodNotAllowed       405   carries `Allow`
  BodyTimeout            408   the body did not arrive in time
  BodyTooLarge           413
  UnsupportedMediaType   415   not JSON, or compressed
"""

import logging

from cluster.errors import ApiError

logger = logging.getLogger(__name__)


class UnknownPath(ApiError):
    status, type, code = 404, "invalid_request_error", "unknown_path"


class RequestNotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "request_not_found"


class MethodNotAllowed(ApiError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"

    def __init__(self, message: str, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.args = (message, allow)
        self.allow = allow


class BodyTimeout(ApiError):
    status, type, code = 408, "invalid_request_error", "body_timeout"


class BodyTooLarge(ApiError):
    status, type, code = 413, "invalid_request_error", "body_too_large"


class UnsupportedMediaType(ApiError):
    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


def answerable(error: Exception) -> ApiError:
    """What a client is told of any error; of an unforeseen one only that it happened (the log has the rest)."""
    if isinstance(error, ApiError):
        return error
    logger.error("unforeseen error while answering a request", exc_info=error)
    return ApiError("The server failed to answer this request; its log says why.")
