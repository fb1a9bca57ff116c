"""The plan of an architecture that transformers has none for, as DeepSpeed's AutoTP reads it off the model's layers.

Of DeepSpeed only the parser is used: cutting, reading slices and summing are ours. It goes by names and order of the
layers' modules, so it guesses; what does not fit together shows when the layers are cut and probed.
"""

from typing import Any

from torch import nn

from parallel.layout import CannotSplit

_ONE_RANK = "run it with tensor_parallel = 1"


def auto_tp_plan(model: Any) -> dict[str, str]:
    """Linear within a layer -> `rowwise` or `colwise`. Raises `CannotSplit`, also where DeepSpeed is not installed."""
    title = f"{type(model).__name__} has no tensor parallel plan in transformers"
    try:
        from deepspeed.module_inject.auto_tp import AutoTP
    except ImportError:
        remedy = f"install `manta-serve[deepspeed]`, whose AutoTP plans for some such architectures, or {_ONE_RANK}"
        raise CannotSplit(title, remedy) from None
    try:
        policy: list[tuple[type[nn.Module], Any]] = AutoTP.tp_parser(model)
    except AssertionError:
        raise CannotSplit(f"{title}, and DeepSpeed's AutoTP does not know its layers", _ONE_RANK) from None
    plan = {}
    for layer_class, row_names in policy:
        rows = tuple(f".{name.removeprefix('.')}" for name in row_names)
        for layer_name, layer in model.named_modules():
            if type(layer) is layer_class:
                for name, module in layer.named_modules(prefix=layer_name):
                    if isinstance(module, nn.Linear):
                        plan[name] = "rowwise" if name.endswith(rows) else "colwise"
    return plan
