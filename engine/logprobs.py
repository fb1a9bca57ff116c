"""Log probabilities as they go to the client: the token's own and the best n beside it."""

import numpy as np
import torch

from engine.request import TokenLogprobs
from engine.sequence_table import IntArray

#: The best are looked for in groups of at least this width, so that ties fall alike whatever n is.
_MIN_WIDTH = 32


def token_logprobs(raw: torch.Tensor, token_ids: IntArray, counts: IntArray) -> list[TokenLogprobs]:
    """For log probabilities [R, vocabulary]: those of `token_ids` [R], with the `counts` [R] best of each row."""
    picked = torch.from_numpy(np.maximum(token_ids, 0)).to(raw.device)
    own = raw.gather(1, picked[:, None])[:, 0].tolist()
    most = int(counts.max(initial=0))
    if most == 0:
        return [TokenLogprobs(value) for value in own]
    best = raw.topk(min(max(most, _MIN_WIDTH), raw.shape[1]), dim=-1)
    rows = zip(own, best.indices.tolist(), best.values.tolist(), counts.tolist(), strict=True)
    return [TokenLogprobs(value, list(zip(ids[:n], values[:n], strict=True))) for value, ids, values, n in rows]
