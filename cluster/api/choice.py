"""One output of one request while it grows: token chunks in, text and tokens for the client out."""

from collections.abc import Sequence

import msgspec

from cluster.api.sampling_rules import stop_strings
from cluster.api.schema import SamplingFields
from cluster.errors import DeadlineExceeded, EngineFailed
from cluster.text.detokenizer import Detokenizer
from cluster.text.stop_strings import StopStrings
from cluster.text.tokenizer import Tokenizer
from engine.request import FinishReason, GenerateRequest, TokenChunk, TokenLogprobs


class TextRules(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens become text for one request."""

    stops: tuple[str, ...] = ()
    skip_special_tokens: bool = True
    named_stop_ids: frozenset[int] = frozenset()  #: ending tokens that the client named, not the model's own

    @classmethod
    def of(cls, body: SamplingFields) -> "TextRules":
        """The rules that a request asks for."""
        return cls(
            stops=stop_strings(body),
            skip_special_tokens=body.skip_special_tokens is not False,
            named_stop_ids=frozenset(body.stop_token_ids or ()),
        )


class Delta(msgspec.Struct, gc=False):
    """What one chunk adds to a choice. `next_index` counts the choice's tokens, these included."""

    choice: int
    text: str
    token_ids: list[int]
    next_index: int
    logprobs: list[TokenLogprobs] | None = None
    offsets: Sequence[int] = ()  #: with logprobs: where in the output's text each token begins
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None


class Choice:
    """The state of one output. `feed` is the per-token work of a gateway."""

    __slots__ = ("_detokenizer", "_min_tokens", "_rules", "_stops", "_token_by_token", "index", "num_tokens", "request")

    def __init__(self, index: int, request: GenerateRequest, tokenizer: Tokenizer, rules: TextRules) -> None:
        self.index, self.request = index, request
        self.num_tokens = 0
        self._rules = rules
        self._stops = StopStrings(rules.stops)
        self._min_tokens = request.sampling.min_tokens
        self._token_by_token = bool(rules.stops) or request.sampling.logprobs is not None
        self._detokenizer = Detokenizer(
            tokenizer, request.prompt_token_ids, skip_special_tokens=rules.skip_special_tokens
        )

    def feed(self, chunk: TokenChunk) -> Delta:
        """Take the next chunk; after a delta with `finish_reason` there must be none.

        Raises what the client is to be told when the chunk says that the request failed.
        """
        if chunk.finish is FinishReason.ERROR:
            raise EngineFailed("The engine could not finish this request.")
        if chunk.finish is FinishReason.ABORT:
            raise DeadlineExceeded("The request ran longer than it may; ask for fewer tokens.")
        token_ids, stop_reason = chunk.token_ids, None
        offsets: list[int] = []
        ending = chunk.finish is FinishReason.STOP and bool(token_ids)
        spoken = token_ids[:-1] if ending else token_ids
        if self._token_by_token:
            text, offsets = self._feed_each(spoken)
            if self._stops.found is not None:
                token_ids, ending = token_ids[: len(offsets)], False
        else:
            text = self._detokenizer.feed(spoken)
        if ending:
            stop_reason = token_ids[-1] if token_ids[-1] in self._rules.named_stop_ids else None
            offsets = [*offsets, self._detokenizer.num_chars]
        self.num_tokens = chunk.index + len(token_ids)
        delta = Delta(self.index, text, token_ids, self.num_tokens)
        if chunk.logprobs is not None:
            delta.logprobs, delta.offsets = chunk.logprobs[: len(token_ids)], offsets
        if chunk.index == 0:
            delta.num_cached_tokens, delta.prompt_logprobs = chunk.num_cached_tokens, chunk.prompt_logprobs
        if chunk.finish is not None or self._stops.found is not None:
            self._finish(delta, chunk.finish, stop_reason)
        return delta

    def _feed_each(self, token_ids: list[int]) -> tuple[str, list[int]]:
        """Text to give out, and where each token begins; ends with the token that completes a stop string."""
        texts, offsets = [], []
        for count, token_id in enumerate(token_ids, self.num_tokens + 1):
            offsets.append(self._detokenizer.num_chars)
            text = self._detokenizer.feed((token_id,))
            texts.append(self._stops.pass_by(text) if count <= self._min_tokens else self._stops.feed(text))
            if self._stops.found is not None:
                break
        return "".join(texts), offsets

    def _finish(self, delta: Delta, finish: FinishReason | None, stop_reason: int | None) -> None:
        if self._stops.found is None:
            delta.text += self._stops.feed(self._detokenizer.flush())
        if self._stops.found is None:
            delta.text += self._stops.flush()
            delta.finish_reason, delta.stop_reason = str(finish), stop_reason
        else:
            delta.finish_reason, delta.stop_reason = str(FinishReason.STOP), self._stops.found
