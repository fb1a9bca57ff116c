"""The cluster file of `ray up`, as far as `manta up` and `manta down` must know it; Ray's own schema judges it."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from engine.errors import MantaError

_OPTIONS = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes")
SSH_TIMEOUT_S = 10


class BadClusterFile(MantaError):
    """`ray up` could do nothing with it."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """`num_hosts`: the head and the workers that it starts with. `stop_commands`: of the head, of a worker."""

    path: Path
    name: str
    provider: Mapping[str, Any]
    auth: Mapping[str, Any]
    num_hosts: int
    stop_commands: tuple[str, str]

    @property
    def is_local(self) -> bool:
        """Whether the machines are there already: then nobody can switch them off, only stop Ray on them."""
        return bool(self.provider["type"] == "local")

    @property
    def stops(self) -> tuple[tuple[str, str], ...]:
        """Address and command that stops Ray there, of each named machine, the head first."""
        head, workers = self.provider["head_ip"], self.provider["worker_ips"]
        return ((head, self.stop_commands[0]), *((worker, self.stop_commands[1]) for worker in workers))

    def ssh(self, host: str, command: str) -> list[str]:
        """The words that run `command` in a login shell of `host`; through the head where that has an outer address."""
        options = [word for option in (*_OPTIONS, f"ConnectTimeout={SSH_TIMEOUT_S}") for word in ("-o", option)]
        if key := self.auth.get("ssh_private_key"):
            options += ["-i", str(Path(key).expanduser())]
        proxy = self.auth.get("ssh_proxy_command")
        if outer := self.provider.get("external_head_ip"):
            proxy = shlex.join(["ssh", *options, "-W", "%h:%p", f"{self.auth['ssh_user']}@{outer}"])
        if proxy:
            options += ["-o", f"ProxyCommand={proxy}"]
        return ["ssh", *options, f"{self.auth['ssh_user']}@{host}", f"bash --login -c {shlex.quote(command)}"]


def read_cluster_file(name: str) -> ClusterFile:
    """Raises `BadClusterFile`, with the key where Ray names one."""
    path = Path(name)
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(written, dict) or "type" not in (written.get("provider") or {}):
            raise BadClusterFile(name, "not a cluster file of `ray up`: it names no provider.type")
        config = prepare_config(written)
        validate_config(config)
    except OSError as error:
        raise BadClusterFile(name, error.strerror or str(error)) from None
    except ValidationError as error:
        where = ".".join(map(str, error.absolute_path))
        raise BadClusterFile(name, f"{where}: {error.message}" if where else error.message) from None
    except click.ClickException as error:
        raise BadClusterFile(name, error.message) from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise BadClusterFile(name, " ".join(str(error).split())) from None
    kinds, is_local = config["available_node_types"], config["provider"]["type"] == "local"  # local: all are one kind
    starting = (
        kind.get("min_workers", 0) for name, kind in kinds.items() if is_local or name != config["head_node_type"]
    )
    num_hosts, stops = 1 + sum(starting), (_stop_command(config, "head"), _stop_command(config, "worker"))
    return ClusterFile(path, config["cluster_name"], config["provider"], config["auth"], num_hosts, stops)


def _stop_command(config: Mapping[str, Any], kind: str) -> str:
    """The file names the `ray` of its hosts where it stops what may still run there."""
    commands = config[f"{kind}_start_ray_commands"]
    return next((command for command in commands if re.search(r"\bray\b.* stop\b", command)), "ray stop")
