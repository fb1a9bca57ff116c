"""Log probabilities in the shapes of the two OpenAI endpoints."""

from collections.abc import Sequence

from cluster.api.schema_chat import ChatLogprobs, TokenLogprob, TopLogprob
from cluster.api.schema_completions import CompletionLogprobs
from cluster.text.tokenizer import Tokenizer
from engine.request import TokenLogprobs

_LEAST = -9999.0  #: stands for minus infinity, which JSON cannot say


def chat_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], num_top: int
) -> ChatLogprobs:
    """`choices[].logprobs` of a chat answer or chunk."""
    return ChatLogprobs(
        content=[
            TokenLogprob(
                token=_text(tokenizer, token_id),
                logprob=max(found.logprob, _LEAST),
                bytes=list(tokenizer.token_bytes(token_id)),
                top_logprobs=[
                    TopLogprob(
                        token=_text(tokenizer, top_id),
                        logprob=max(logprob, _LEAST),
                        bytes=list(tokenizer.token_bytes(top_id)),
                    )
                    for top_id, logprob in found.top[:num_top]
                ],
            )
            for token_id, found in zip(token_ids, logprobs, strict=True)
        ]
    )


def completion_logprobs(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs | None],
    offsets: Sequence[int],
    num_top: int,
) -> CompletionLogprobs:
    """`choices[].logprobs` of a completion or chunk; the first token of a prompt has none (null)."""
    formatted = CompletionLogprobs(text_offset=list(offsets))
    for token_id, found in zip(token_ids, logprobs, strict=True):
        text = _text(tokenizer, token_id, "bytes:")
        formatted.tokens.append(text)
        if found is None:
            formatted.token_logprobs.append(None)
            formatted.top_logprobs.append(None)
            continue
        logprob = max(found.logprob, _LEAST)
        top = {_text(tokenizer, top_id, "bytes:"): max(value, _LEAST) for top_id, value in found.top[:num_top]}
        formatted.token_logprobs.append(logprob)
        formatted.top_logprobs.append({**top, text: logprob})
    return formatted


def _text(tokenizer: Tokenizer, token_id: int, mark: str = "") -> str:
    """The token's text; of a part of a character the escaped bytes, as the OpenAI API writes them."""
    spelled = tokenizer.token_bytes(token_id)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return mark + "".join(f"\\x{byte:02x}" for byte in spelled)
