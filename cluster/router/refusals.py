"""What a router shard says to a request that it does not let wait."""

from cluster.frames import Enqueue, Refuse


def refuse(asked: Enqueue, code: str, message: str, after_s: float | None) -> Refuse:
    return Refuse(asked.request_id, asked.attempt, code, message, after_s)


def refuse_poison(asked: Enqueue) -> Refuse:
    message = "this request has ended the replicas that computed it; it is refused for ten minutes"
    return refuse(asked, "poison_request", message, None)


def refuse_share(asked: Enqueue, after_s: float | None) -> Refuse:
    message = f"your share of the queue of {asked.model!r} is full; try again later"
    return refuse(asked, "rate_limit_exceeded", message, after_s)
