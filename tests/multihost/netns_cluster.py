"""Hosts made of namespaces, by the tool that MANTA_NETNS names, and ray_config.local.yaml made to name them."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.auth.api_keys import KeyFile, make_key, write_key_file

ROOT = Path(__file__).resolve().parents[2]
TOOL = os.environ.get("MANTA_NETNS", "")
PREFIX, NET = "mnta", "10.78.0"
CPUS = 4  #: of each host, as it says: room for what a lost one held


def why_not() -> str:
    """Why hosts cannot be made here; empty when they can."""
    if not TOOL:
        return "MANTA_NETNS does not name the tool that makes hosts (docs/cluster.md)"
    if not os.access(TOOL, os.X_OK):
        return f"MANTA_NETNS: {TOOL} is no program"
    if os.geteuid() != 0:
        return "making hosts needs root"
    missing = [name for name in ("ip", "sshd", "rsync", "unshare", "nsenter") if shutil.which(name) is None]
    return f"missing: {', '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Hosts:
    """Host 1 is the head."""

    num_hosts: int
    folder: Path

    def tool(self, *words: str) -> str:
        """One command of the tool; raises CalledProcessError."""
        environment = {
            **os.environ,
            "NH_PREFIX": PREFIX,
            "NH_NET": NET,
            "NH_DIR": str(self.folder / "hosts"),
            "NH_KEEP": f"{ROOT}:{self.keys.parent}",
            "NH_ENV": f"PYTHONPATH={ROOT} RAY_AUTH_MODE=token RAY_memory_monitor_refresh_ms=0 "
            "RAY_raylet_start_wait_time_s=120",
        }
        done = subprocess.run([TOOL, *words], env=environment, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def address(self, number: int) -> str:
        return f"{NET}.{10 + number}"

    @property
    def keys(self) -> Path:
        """The file of API keys, at this path on every host."""
        return self.folder / "kept" / "keys.json"

    def make_api_key(self) -> str:
        """One of that file."""
        key, kept = make_key("default", ["*"], False, None)
        self.keys.write_bytes(write_key_file(KeyFile([kept])))
        return key

    def cluster_file(self) -> Path:
        """The file as it is, but for the machines: they see this checkout, so nothing is installed, and are small."""
        text = (ROOT / "ray_config.local.yaml").read_text().replace("~/manta", str(ROOT))
        cluster = yaml.safe_load(text.replace("bin/ray start", f"bin/ray start --num-cpus={CPUS}"))
        workers = [self.address(number) for number in range(2, self.num_hosts + 1)]
        cluster["cluster_name"] = self.folder.name
        cluster["provider"] = {"type": "local", "head_ip": self.address(1), "worker_ips": workers}
        cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.folder / "hosts" / "id")}
        cluster["min_workers"] = cluster["max_workers"] = len(workers)
        cluster["setup_commands"] = []
        del cluster["file_mounts"][str(ROOT)]
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(cluster), encoding="utf-8")
        return path


@contextmanager
def netns_hosts(num_hosts: int) -> Iterator[Hosts]:
    """Hosts that nothing is left of afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="manta-hosts-"))
    hosts = Hosts(num_hosts, folder)
    hosts.keys.parent.mkdir()
    try:
        hosts.tool("up", str(num_hosts))
        yield hosts
    finally:
        hosts.tool("down")
        shutil.rmtree(folder, ignore_errors=True)
        for state in Path("/tmp/ray").glob(f"cluster-{folder.name}.*"):  # of Ray's launcher on this machine
            state.unlink()
