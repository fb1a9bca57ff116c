"""Errors a client is answered with; each knows its HTTP status and the OpenAI error body.

    ApiError                     status, type, code, param, message, retry_after_s
      InvalidRequest       400   a field is wrong; `param` names it
      Unauthorized         401   no credential, or none that is believed; which of them, nobody is told
      Forbidden            403   a known caller who may not do this
      ModelNotFound        404
      StreamNotFound       404   never heard of, another tenant's, or its time is over
      StreamTaken          409   another connection has resumed the stream
      RateLimited          429   rate_limit_exceeded: the tenant's share of the queue is full
        QuotaExceeded      429   the same code: the tenant has used its requests or tokens of the minute
      RequestTooLarge      400   request_too_large: a limit would never let it through
      Overloaded           503   server_is_overloaded: the queue is full
      NoReadyReplica       503   no_ready_replica
      KeysUnavailable      503   a token cannot be checked: its issuer's keys cannot be had
      StreamsUnavailable   503   streams_unavailable: no shard can be asked for copies of streams
      GatewayClosing       503   the gateway is replaced; another one answers
      DeadlineExceeded     504   waited past its deadline; nothing was computed
      EngineFailed         500   the engine gave up on this request
      PoisonRequest        500   the request has killed two replicas, or its like has

All arguments go to `super().__init__`, so that errors survive pickling between actors.
"""

from collections.abc import Iterable

from engine.errors import MantaError


class ApiError(MantaError):
    """An answer other than success."""

    status = 500
    type = "server_error"
    code = "internal_error"
    headers: tuple[tuple[bytes, bytes], ...] = ()  #: of an answer by HTTP, besides those that all errors have

    def __init__(self, message: str, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, param, retry_after_s)
        self.message, self.param, self.retry_after_s = message, param, retry_after_s

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, dict[str, str | None]]:
        """The OpenAI error body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ApiError):
    status, type, code = 400, "invalid_request_error", "invalid_value"

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message, param)
        self.args = (message, param, code)
        self.code = code


class Unauthorized(ApiError):
    status, type, code = 401, "authentication_error", "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("Say who asks, with an API key or a token that is valid: `Authorization: Bearer ...`.")
        self.args = ()


class Forbidden(ApiError):
    status, type, code = 403, "permission_error", "admin_required"


class ModelNotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "model_not_found"


class RateLimited(ApiError):
    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class QuotaExceeded(RateLimited):
    def __init__(
        self, message: str, retry_after_s: float | None = None, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(message, None, retry_after_s)
        self.headers = tuple(headers)
        self.args = (message, retry_after_s, self.headers)


class RequestTooLarge(ApiError):
    status, type, code = 400, "invalid_request_error", "request_too_large"

    def __init__(self, message: str, param: str | None = None, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(message, param)
        self.headers = tuple(headers)
        self.args = (message, param, self.headers)


class StreamNotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "stream_not_found"


class StreamTaken(ApiError):
    status, type, code = 409, "invalid_request_error", "stream_taken"


class KeysUnavailable(ApiError):
    status, type, code = 503, "server_error", "keys_unavailable"


class StreamsUnavailable(ApiError):
    status, type, code = 503, "server_error", "streams_unavailable"


class Overloaded(ApiError):
    status, type, code = 503, "server_error", "server_is_overloaded"


class NoReadyReplica(ApiError):
    status, type, code = 503, "server_error", "no_ready_replica"


class GatewayClosing(ApiError):
    status, type, code = 503, "server_error", "gateway_closing"


class DeadlineExceeded(ApiError):
    status, type, code = 504, "server_error", "deadline_exceeded"


class EngineFailed(ApiError):
    status, type, code = 500, "server_error", "engine_failed"


class PoisonRequest(ApiError):
    status, type, code = 500, "server_error", "poison_request"
