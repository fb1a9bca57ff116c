"""What a call costs: reserved before it begins, charged when it is over."""

from cluster.calls.record import CallRecord


def reserved_tokens(record: CallRecord) -> int:
    """The most it can be charged. Of a resumed stream that had begun the prompt is charged already."""
    return record.max_output_tokens + (0 if record.was_charged else record.num_prompt_tokens)


def charged_tokens(record: CallRecord, cached_weight: float) -> float:
    """What it is charged, however it ended: the prompts once, cached tokens by their weight, and what was computed.

    A call that no replica was given costs nothing.
    """
    if not record.attempts:
        return 0.0
    num_cached = min(record.num_cached_tokens, record.num_prompt_tokens)
    prompt = 0.0 if record.was_charged else record.num_prompt_tokens - (1.0 - cached_weight) * num_cached
    return prompt + record.num_output_tokens
