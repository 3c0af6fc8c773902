"""A real Kubo daemon under the configuration that `usufruct-node kubo config` writes; skipped, loudly, where there is none."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from block_homes import BlockHome
from chain_fixture import until
from free_ports import free_port
from usufruct.content import BlockStore, Cid
from usufruct.content.kubo import Credentials, KuboBlockStore, KuboRpc
from usufruct.home import Home
from usufruct_node.kubo import configure

_BUILT = Path(__file__).parents[1] / ".kubo" / "build" / "ipfs"
_MISSING = (
    "no Kubo: neither `ipfs` on the PATH nor a build of `scripts/kubo build`; nothing was tested against it"
)


def ipfs_program() -> Path | None:
    """Where Kubo is, if it is anywhere."""
    found = shutil.which("ipfs")
    if found is not None:
        return Path(found)
    return _BUILT if _BUILT.is_file() else None


def require_kubo() -> Path:
    """Kubo's program, or a skipped test and a warning."""
    program = ipfs_program()
    if program is None:
        warnings.warn(_MISSING, stacklevel=2)
        pytest.skip(_MISSING)
    return program


@dataclass
class Kubo(BlockHome):
    """One daemon and the node's home that it belongs to."""

    program: Path
    repository: Path
    home: Home
    address: str

    def ipfs(self, *words: str, stdin: bytes = b"", check: bool = True) -> bytes:
        """Output of an `ipfs` command at the daemon, with its secret."""
        secret = "basic:" + self.home.kubo_token.read_text().strip()
        done = subprocess.run(
            [self.program, "--api", self.address, "--api-auth", secret, *words],
            env=self._environment(),
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr.decode()
        return done.stdout

    def rpc(self, *, deadline_s: float = 30.0) -> KuboRpc:
        return KuboRpc(self.address, Credentials.load(self.home.kubo_token), deadline_s=deadline_s)

    def open(self, *, quota_bytes: int | None = None) -> BlockStore:
        return KuboBlockStore(self.home.kubo_catalogue, self.rpc(), quota_bytes=quota_bytes)

    def damage(self, cid: Cid) -> None:
        path = self._file(cid)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)

    def lose(self, cid: Cid) -> None:
        self._file(cid).unlink()

    def at_rest(self) -> set[Cid]:
        lines = self.ipfs("repo", "ls").decode().split()
        return {cid for line in lines if (cid := Cid.parse(line)).digest.hex() != _KUBOS_OWN}

    def forget(self) -> None:
        """Empty the daemon and the home's catalogue between tests."""
        shutil.rmtree(self.home.kubo_catalogue, ignore_errors=True)
        for kind in ("direct", "recursive"):
            pins = self.ipfs("pin", "ls", "--quiet", f"--type={kind}").decode().split()
            if pins:
                self.ipfs("pin", "rm", *pins)
        self.ipfs("repo", "gc", "--silent")

    def _file(self, cid: Cid) -> Path:
        """Flatfs names a block by the base32 of its multihash."""
        name = base64.b32encode(b"\x12\x20" + cid.digest).decode().rstrip("=")
        return self.repository / "blocks" / name[-3:-1] / f"{name}.data"

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("IPFS_", "LIBP2P_"))}
        return {**kept, "IPFS_PATH": str(self.repository), "LIBP2P_FORCE_PNET": "1"}

    @contextmanager
    def running(self) -> Iterator[None]:
        """`ipfs daemon` until the block ends."""
        with (self.repository.parent / "kubo.log").open("ab") as log:
            process = subprocess.Popen(
                [self.program, "daemon"], env=self._environment(), stdout=log, stderr=subprocess.STDOUT
            )
            try:
                until(lambda: process.poll() is not None or self._answers())
                assert process.poll() is None, (self.repository.parent / "kubo.log").read_text()
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", int(self.address.rsplit("/", 1)[1])), timeout=1):
                return True
        except OSError:
            return False


_KUBOS_OWN = "59948439065f29619ef41280cbb932be52c56d99c5966b65e0111239f098bbef"
"""Digest of the empty directory, which every Kubo has."""


def new_kubo(root: Path, *, harden: bool = True) -> Kubo:
    """A repository that no daemon runs on yet, and a home for its token."""
    program = require_kubo()
    home, repository = Home(root / "home"), root / "repository"
    home.root.mkdir(parents=True)
    made = Kubo(program, repository, home, f"/ip4/127.0.0.1/tcp/{free_port()}")
    subprocess.run(
        [program, "init", "--empty-repo", "--profile=server"],
        env=made._environment() | {"LIBP2P_FORCE_PNET": ""},
        capture_output=True,
        check=True,
        timeout=60,
    )
    if harden:
        configure(home, repository, rpc_address=made.address)
    return made
