"""Errors an engine raises for what others gave it.

    MantaError
      ConfigError            a value in the configuration; names key, value and remedy
      ModelRefused           a checkpoint that cannot be served
        UnsupportedArchitecture
        BadCheckpoint        missing, truncated, misfitting or unsafe files; names the file
      RequestRefused         a request this engine can never run
      RankMisfit             a rank that would give wrong results or none; names it, its host, the value and the remedy
      RankLost               a rank has died, broken or stopped; names it
      EngineAway             the engine takes nothing for a while
      EngineDead             the engine has stopped; nothing it holds will finish
      KernelBuildError       the CPU kernels could not be compiled

Every error passes all its arguments to `super().__init__`, so that it survives pickling between actors.
"""


class MantaError(Exception):
    """Base of every error that Manta raises on purpose."""


class ConfigError(MantaError):
    """A configuration value is wrong."""

    def __init__(self, key: str, value: object, remedy: str) -> None:
        super().__init__(key, value, remedy)
        self.key, self.value, self.remedy = key, value, remedy

    def __str__(self) -> str:
        return f"configuration: {self.key} = {self.value!r}: {self.remedy}"


class ModelRefused(MantaError):
    """This checkpoint cannot be served; `where` is the model or the file, `why` names the remedy."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(where, why)
        self.where, self.why = where, why

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class UnsupportedArchitecture(ModelRefused):
    """The model class cannot run on the paged engine."""


class BadCheckpoint(ModelRefused):
    """A file of the checkpoint is missing, truncated, unsafe or does not fit the others."""


class RequestRefused(MantaError):
    """The engine can never run this request (the gateway should have refused it)."""

    def __init__(self, request_id: str, why: str) -> None:
        super().__init__(request_id, why)
        self.request_id, self.why = request_id, why

    def __str__(self) -> str:
        return f"request {self.request_id}: {self.why}"


class RankMisfit(MantaError):
    """A rank is not like the others, so that together they would give wrong results or none."""

    def __init__(self, rank: int, host: str, what: str, remedy: str) -> None:
        super().__init__(rank, host, what, remedy)
        self.rank, self.host, self.what, self.remedy = rank, host, what, remedy

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} {self.what}: {self.remedy}"


class RankLost(MantaError):
    """A rank of this replica computes no more, and so the others do not, until it is replaced."""

    def __init__(self, rank: int, step: int, why: str) -> None:
        super().__init__(rank, step, why)
        self.rank, self.step, self.why = rank, step, why

    def __str__(self) -> str:
        return f"rank {self.rank}, step {self.step}: {self.why}"


class EngineAway(MantaError):
    """The engine has handed back what it held and takes nothing until its ranks are whole again."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"the engine is away: {self.why}"


class EngineDead(MantaError):
    """The engine's loop has ended; `why` is its first error."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"the engine has stopped: {self.why}"


class KernelBuildError(MantaError):
    """Compiling the CPU kernels failed; `output` is the compiler's own text."""

    def __init__(self, command: str, output: str) -> None:
        super().__init__(command, output)
        self.command, self.output = command, output

    def __str__(self) -> str:
        return f"compiling the CPU kernels failed: {self.command}\n{self.output}"
