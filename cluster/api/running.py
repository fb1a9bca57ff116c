"""A prepared call, run: admitted, written down, its deltas as they come."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from cluster.api.choice import Delta
from cluster.api.fan_out import run_choices
from cluster.api.prepared_call import PreparedCall
from cluster.api.serving import Serving


async def run_call(serving: Serving, call: PreparedCall) -> AsyncGenerator[Delta, None]:
    """Until all its choices have ended; closing it frees the work. Raises what keeps the call from beginning."""
    async with (
        serving.calls.run(call.record),
        aclosing(run_choices(serving.generator, call.choices, call.context, call.origin.block_size)) as deltas,
    ):
        async for delta in deltas:
            yield delta
