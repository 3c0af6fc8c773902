"""A real Kubo on loopback, in a private swarm of its own, for interop tests; skipped, loudly, where there is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from kubo_fixture import require_kubo
from usufruct.content import Cid, Codec

_START_SECONDS = 120.0


@dataclass(frozen=True)
class Kubo:
    """A running daemon."""

    peer_id: str
    multiaddr: str
    rpc: httpx.Client

    def call(self, path: str, *arguments: str, **kwargs: Any) -> httpx.Response:
        """The answer of one RPC call that succeeded."""
        answer = self.rpc.post(f"/api/v0/{path}", params=[("arg", one) for one in arguments], **kwargs)
        assert answer.is_success, answer.text
        return answer

    def get(self, cid: Cid) -> bytes:
        """A block, from wherever the daemon finds it."""
        return self.call("block/get", str(cid)).content

    def put(self, data: bytes, codec: Codec = Codec.RAW) -> Cid:
        """Store a block."""
        name = {Codec.RAW: "raw", Codec.DAG_CBOR: "dag-cbor"}[codec]
        answer = self.rpc.post(
            "/api/v0/block/put", params={"cid-codec": name, "allow-big-block": "true"}, files={"data": data}
        )
        return Cid.parse(answer.json()["Key"])

    def connect(self, multiaddr: str) -> None:
        """Dial a peer."""
        self.call("swarm/connect", multiaddr)


@contextmanager
def running_kubo(root: Path, *, swarm_key: str | None = None) -> Iterator[Kubo]:
    """A daemon that knows nobody and listens on loopback TCP only, until the block ends."""
    program = require_kubo()
    repository = root / "kubo"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("IPFS_", "LIBP2P_"))}
    environment = {**kept, "IPFS_PATH": str(repository)}
    subprocess.run([program, "init", "--empty-repo"], env=environment, capture_output=True, check=True)
    config = json.loads((repository / "config").read_text())
    _isolate(config)
    (repository / "config").write_text(json.dumps(config))
    if swarm_key is not None:
        (repository / "swarm.key").write_text(swarm_key)
        environment["LIBP2P_FORCE_PNET"] = "1"
    log = root / "kubo.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "daemon"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        with httpx.Client(base_url=_api_of(repository, process, log), timeout=60) as rpc:
            found = rpc.post("/api/v0/id").json()
            address = next(one for one in found["Addresses"] if one.startswith("/ip4/127.0.0.1/tcp/"))
            yield Kubo(found["ID"], address, rpc)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _isolate(config: dict[str, Any]) -> None:
    """Keep the daemon from talking to anybody who is not told of it."""
    config["Bootstrap"] = []
    config["Addresses"].update(Swarm=["/ip4/127.0.0.1/tcp/0"], API="/ip4/127.0.0.1/tcp/0", Gateway="")
    config["AutoConf"] = {"Enabled": False}
    config["AutoTLS"] = {"Enabled": False}
    config["Routing"] = {"Type": "none", "DelegatedRouters": []}
    config["Ipns"]["DelegatedPublishers"] = []
    config["DNS"] = {"Resolvers": {}}
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["Provide"] = {"Enabled": False}
    config["HTTPRetrieval"] = {"Enabled": False}
    config["Plugins"] = {"Plugins": {"telemetry": {"Disabled": True}}}
    config["Version"] = {"SwarmCheckEnabled": False}
    config["Swarm"].update(
        DisableNatPortMap=True,
        RelayClient={"Enabled": False},
        Transports={
            "Network": dict.fromkeys(("QUIC", "WebTransport", "Websocket", "WebRTCDirect", "Relay"), False)
        },
    )


def _api_of(repository: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if "Daemon is ready" in log.read_text():
            _, _, host, _, port = (repository / "api").read_text().strip().split("/")
            return f"http://{host}:{port}"
        time.sleep(0.05)
    raise AssertionError(f"Kubo did not start: {log.read_text()}")
