"""The endpoints that need no engine's work: models, tokenize, detokenize, health, version."""

import asyncio
from typing import Any

from starlette.types import Scope

from cluster.api.sampling_rules import check_token_ids, context_limit
from cluster.api.schema_tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    Health,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
    Version,
)
from cluster.api.serving import Serving
from cluster.auth.principal import Principal
from cluster.errors import InvalidRequest
from cluster.text.conversation import Conversation
from cluster.text.served_model import ServedModel


class TokenEndpoints:
    """They know models by their tokenizers, so all but the limits work while no replica is ready."""

    def __init__(self, serving: Serving, version: str) -> None:
        self._serving, self._version = serving, version

    def models(self, scope: Scope) -> ModelList:
        """Those configured that the caller may use, ready or not."""
        return ModelList(data=[self._card(model) for model in self._serving.models_of(scope["principal"])])

    def model_card(self, scope: Scope) -> ModelCard:
        """One of them."""
        name: Any = scope["path_params"]["model"]
        return self._card(self._serving.model(name, scope["principal"]))

    async def tokenize(self, body: TokenizeRequest, principal: Principal) -> TokenizeResponse:
        """As the generating endpoints would do it."""
        model = self._serving.model(body.model, principal)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("Give either `prompt` or `messages`.", "prompt")
        if body.prompt is not None:
            add = body.add_special_tokens is not False
            ids = await model.tokenizer.encode(body.prompt, add_special_tokens=add)
        else:
            ids = await Conversation.of(body).tokenize(model)
        strings = [model.tokenizer.token(token_id) or "" for token_id in ids] if body.return_token_strs else None
        return TokenizeResponse(
            count=len(ids), max_model_len=self._max_model_len(model), tokens=ids, token_strs=strings
        )

    async def detokenize(self, body: DetokenizeRequest, principal: Principal) -> DetokenizeResponse:
        """Special tokens included."""
        model = self._serving.model(body.model, principal)
        check_token_ids(body.tokens, "tokens", model.tokenizer.vocab_size)
        text = await asyncio.to_thread(model.tokenizer.decode, body.tokens, skip_special_tokens=False)
        return DetokenizeResponse(prompt=text)

    def health(self, scope: Scope) -> Health:
        """This process answers; whether replicas are ready, `/v1/models` says."""
        return Health()

    def version(self, scope: Scope) -> Version:
        """Of the program."""
        return Version(version=self._version)

    def _card(self, model: ServedModel) -> ModelCard:
        return ModelCard(id=model.name, created=model.created, max_model_len=self._max_model_len(model))

    def _max_model_len(self, model: ServedModel) -> int | None:
        info = self._serving.generator.model_info(model.name)
        return None if info is None else context_limit(info)
