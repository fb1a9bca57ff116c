"""How large a model is once it is cut: bytes of each layer and end, at that rank of a group which holds most.

Values, without tensors: `engine.model_sizes` measures them by the very cut that loading does, `parallel.plan` reckons
with them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerSize:
    """One layer at one rank."""

    num_bytes: int  #: weights and buffers
    expert_bytes: int  #: of these, what belongs to experts: a token goes to some of them only
    kv_bytes: int  #: keys and values of one token
    query_width: int  #: numbers in one token's queries
    num_sums: int  #: over the group, in one step


@dataclass(frozen=True, slots=True)
class StageSize:
    """One rank of a pipeline stage."""

    layers: tuple[LayerSize, ...]
    num_bytes: int  #: weights and buffers
    read_bytes: int  #: of these, what every step reads beside its experts: not the rows of an embedding
    num_sums: int

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token."""
        return sum(layer.kv_bytes for layer in self.layers)

    @property
    def expert_bytes(self) -> int:
        """Weights of experts."""
        return sum(layer.expert_bytes for layer in self.layers)


@dataclass(frozen=True, slots=True)
class PartSizes:
    """A rank's part of the whole depth of the model."""

    layers: tuple[LayerSize, ...]
    embedding_bytes: int
    head_bytes: int  #: what the output layer does not share with the embedding
    norm_bytes: int  #: the last norm
    elsewhere_bytes: int  #: what every stage has (frequencies of positions)
    widest: int  #: numbers per token in the widest result within a layer

    def stage(self, layers: range, *, is_first: bool, is_last: bool, is_tied: bool) -> StageSize:
        """The stage of these layers, as `parallel.stage_cut` makes it."""
        mine = self.layers[layers.start : layers.stop]
        held = sum(layer.num_bytes for layer in mine) + self.elsewhere_bytes
        read = held - sum(layer.expert_bytes for layer in mine)
        if is_last:
            held += self.norm_bytes + self.head_bytes
            read += self.norm_bytes + self.head_bytes + (self.embedding_bytes if is_tied else 0)
        if is_first or (is_last and is_tied):
            held += self.embedding_bytes
        sums = sum(layer.num_sums for layer in mine)
        return StageSize(mine, held, read, sums + (1 if is_first and sums else 0))


@dataclass(frozen=True)
class ModelSizes:
    """A model under the cuts that were asked for; what cannot be cut so stands in the refusals, with the reason."""

    name: str
    architecture: str
    dtype: str
    dtype_bytes: int
    hidden_size: int
    vocab_size: int
    position_limit: int
    num_parameters: int
    is_tied: bool  #: output layer and embedding are one
    expert_share: float  #: of the experts' weights, what one token goes through; 1.0 without experts
    parts: dict[int, PartSizes]  #: by tensor_parallel
    splits: dict[int, tuple[range, ...]]  #: layers of each stage, by pipeline_parallel
    tensor_refusals: dict[int, str]
    pipeline_refusals: dict[int, str]

    def stages(self, tensor_parallel: int, pipeline_parallel: int) -> list[StageSize]:
        """A rank of each stage; both sizes are among those that can be cut."""
        part, split = self.parts[tensor_parallel], self.splits[pipeline_parallel]
        last = len(split) - 1
        return [
            part.stage(layers, is_first=index == 0, is_last=index == last, is_tied=self.is_tied)
            for index, layers in enumerate(split)
        ]
