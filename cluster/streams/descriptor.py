"""What a shard is told of a request: the hashes that find its prefix, the digest that names it, its shard's key."""

from array import array
from hashlib import blake2b
from itertools import islice

import msgspec

from cluster.generation import RequestContext
from engine.block_hash import block_hashes, root_hash
from engine.config import EngineInfo
from engine.request import GenerateRequest

MAX_BLOCKS = 64  #: hashes per descriptor; what a longer prompt shares beyond them decides no more
_encoder = msgspec.msgpack.Encoder()


class Identity(msgspec.Struct, frozen=True):
    """What stays the same over all attempts at a request."""

    block_hashes: list[bytes]  #: of the prompt's leading full blocks
    digest: bytes  #: of what is asked, whoever asks again; without the seed, which a client rarely chooses
    shard_key: bytes  #: requests that begin alike have the same


def identify(request: GenerateRequest, context: RequestContext, info: EngineInfo | None) -> Identity:
    """`info`: facts of the model's engines; without them no block has a name."""
    prompt = request.prompt_token_ids
    hashes: list[bytes] = []
    if info is not None:
        root = root_hash(info.weights_revision, request.adapter, request.cache_salt)
        leading = prompt[: MAX_BLOCKS * info.block_size]
        hashes = list(islice(block_hashes(leading, info.block_size, root), MAX_BLOCKS))
    digest = blake2b(array("I", prompt), digest_size=16)
    sampling = msgspec.structs.replace(request.sampling, seed=0)
    digest.update(_encoder.encode((context.model, context.tenant, request.adapter, sampling)))
    asked = digest.digest()
    return Identity(hashes, asked, context.model.encode() + (hashes[0] if hashes else asked))
