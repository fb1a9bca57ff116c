"""RedisBook: the book of limits in a Redis, for one gateway's `Account`: each turn is one call of a script there."""

import asyncio
import logging
from importlib.resources import files
from typing import Any

import msgspec

from cluster.frames import QuotaAnswer, QuotaTurn
from cluster.quotas.account import AWAY_S, Account
from engine.errors import ConfigError

PREFIX = "{manta}:quota:"  #: of all keys; in braces, so that a Redis Cluster keeps them in one place
TIMEOUT_S = 0.5  #: a Redis that takes longer is as good as lost
RETRY_S = 0.1
LONG_RETRY_S = AWAY_S + 0.5  #: after the second failure in a row: until then the gateway is alone
logger = logging.getLogger("manta.quotas")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(QuotaAnswer).decode


def book_script() -> str:
    """The Lua script."""
    return (files("cluster.quotas") / "bucket.lua").read_text(encoding="utf-8")


class RedisBook:
    """Takes the account's turns there until closed."""

    def __init__(self, url: str, name: str, account: Account) -> None:
        try:
            import redis.asyncio as redis
        except ImportError:
            raise ConfigError("quotas.redis", url, "needs redis-py: pip install 'manta-serve[redis]'") from None
        self._redis: Any = redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        self._script = self._redis.register_script(book_script())
        self._name, self._account = name, account
        self._num_failures = 0
        self._task: asyncio.Task[None] = asyncio.create_task(self._come(0.0))

    def say(self, turn: QuotaTurn) -> None:
        """Take one turn there; the account is told how it went."""
        self._task = asyncio.create_task(self._take(turn))

    async def _take(self, turn: QuotaTurn) -> None:
        try:
            answered = await self._script(keys=[PREFIX], args=[self._name, _encode(turn)])
            answer = _decode(answered)
        except Exception as error:  # whatever is wrong there, the remedy is to try again later
            self._lose(error)
            return
        self._num_failures = 0
        self._account.on_answer(answer)

    async def _come(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        try:
            await self._redis.ping()
        except Exception as error:
            self._lose(error)
            return
        self._account.on_store(self.say)

    def _lose(self, error: Exception) -> None:
        logger.warning("Redis does not answer (%s: %s)", type(error).__name__, error)
        self._num_failures += 1
        self._account.on_lost()
        self._task = asyncio.create_task(self._come(RETRY_S if self._num_failures == 1 else LONG_RETRY_S))

    def close(self) -> None:
        self._task.cancel()
