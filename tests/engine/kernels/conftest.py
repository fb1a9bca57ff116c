"""The compiled kernels, once for all tests of this room."""

import pytest
import torch

from engine.kernels.library import Isa, Kernels, load_kernels


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    loaded = load_kernels()
    if loaded is None:
        pytest.skip("no C++ compiler here, or MANTA_KERNELS=torch")
    return loaded


@pytest.fixture(params=list(Isa), ids=lambda isa: isa.name)
def each_isa(request: pytest.FixtureRequest, kernels: Kernels) -> Kernels:
    """The kernels held to each kind of instructions that this CPU has."""
    if request.param > kernels.isa:
        pytest.skip(f"this CPU has no {request.param.name}")
    return kernels.with_isa(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads of their own for tests that ask; elsewhere one, since other tests run beside."""
    torch.set_num_threads(1)
