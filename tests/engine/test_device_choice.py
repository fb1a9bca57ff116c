"""A device that is not there is refused in words that say what is missing."""

import pytest
import torch

from engine.device_choice import choose_device, device_of, device_of_ranks
from engine.errors import ConfigError

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert device_of("cuda:1") == torch.device("cuda", 1)  # may be another host's


@NO_GPU
def test_without_a_gpu_auto_is_the_cpu_and_cuda_says_what_is_missing() -> None:
    assert choose_device("auto") == torch.device("cpu")
    missing = r"is a build without CUDA|sees no CUDA device: `nvidia-smi`"
    with pytest.raises(ConfigError, match=rf"engine\.device = 'cuda': torch .*({missing}).*or give cpu"):
        choose_device("cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "mps", ""])
def test_a_name_that_is_no_device(device: str) -> None:
    with pytest.raises(ConfigError, match="give auto, cpu, cuda or cuda:N"):
        choose_device(device)


def test_many_ranks_have_no_one_gpu() -> None:
    assert device_of_ranks("cuda") == torch.device("cuda")
    with pytest.raises(ConfigError, match=r"engine\.device = 'cuda:1': many ranks take one GPU each"):
        device_of_ranks("cuda:1")
