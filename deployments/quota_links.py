"""QuotaLinks: the sockets around a gateway's `Quotas`: the router shards that keep the limits, or a Redis.

A tenant's limits are all in one shard, by its name. While that shard cannot be reached the gateway has its share of
them (`cluster.quotas.alone`); no other shard takes them over, for it could not know what was granted.
"""

import time

from cluster.config import MantaConfig
from cluster.frames import FromRouter, QuotaAnswer
from cluster.metrics import declared
from cluster.metrics.instruments import Instruments
from cluster.quotas.account import BEAT_S, Account
from cluster.quotas.quotas import Quotas
from cluster.streams.link import Link
from cluster.streams.shard_choice import choose_shard
from deployments.redis_book import RedisBook


class QuotaLinks:
    """Of one gateway: `quotas` admits its calls. A `ShardListener`; where nothing is limited it says nothing."""

    def __init__(self, config: MantaConfig, name: str, instruments: Instruments) -> None:
        self.quotas = Quotas(config.quotas, self._account_of)
        self._instruments = instruments
        num_gateways, redis = config.gateway.replicas, config.quotas.redis
        kept_in = ["redis"] if redis else [f"router shard {shard}" for shard in range(config.router.shards)]
        if not config.quotas.is_on:
            kept_in = []
        self.accounts = [Account(where, num_gateways, time.monotonic) for where in kept_in]
        self._redis = RedisBook(redis, name, self.accounts[0]) if redis and kept_in else None
        self._of_shard = {} if redis else dict(enumerate(self.accounts))
        self._burned_at = 0.0

    def _account_of(self, tenant: str) -> Account:
        chosen = choose_shard(tenant.encode(), range(len(self.accounts)))
        assert chosen is not None
        return self.accounts[chosen]

    def on_router(self, shard: int, link: Link) -> None:
        if shard in self._of_shard:
            self._of_shard[shard].on_store(link.send)

    def on_router_frame(self, shard: int, frame: FromRouter) -> None:
        if isinstance(frame, QuotaAnswer):
            self._of_shard[shard].on_answer(frame)

    def on_router_lost(self, shard: int) -> None:
        if shard in self._of_shard:
            self._of_shard[shard].on_lost()

    def on_tick(self, now: float) -> None:
        if now - self._burned_at >= BEAT_S:
            self._burned_at = now
            self.quotas.burn()
        for account in self.accounts:
            account.tick()
        number = self._instruments.number
        number(declared.QUOTA_ALONE).value = sum(account.is_alone for account in self.accounts)
        number(declared.QUOTA_LOSSES).value = sum(account.num_times_alone for account in self.accounts)
