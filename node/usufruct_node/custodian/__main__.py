"""The custodian's process: unlocks the keystore of homomorphic secrets, gives up the network, answers its node.

Started by the node. It reads its passphrase from the file that is named to it, or asks at the terminal itself: the node never
sees it. It ends when its standard input does: then its node is gone. It loads no library of the peers' network.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from usufruct.errors import UsufructError
from usufruct.home import Home
from usufruct.keys.keystore import KeyStore, read_passphrase
from usufruct_node.custodian import wire
from usufruct_node.custodian.confine import confine
from usufruct_node.custodian.service import Service

_log = logging.getLogger("usufruct_node.custodian")
_REQUEST_SECONDS = 120.0


def run(home: Home, passphrase_file: Path | None, *, key_openings: int) -> None:
    """Serve until the standard input ends."""
    confine()
    passphrase = _passphrase(home, passphrase_file)
    # A terminal sends it to the whole group: the node decides when its custodian ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keystore = KeyStore.open(home.custodian_keystore, passphrase)
    service = Service(home, keystore, key_openings=key_openings)
    listener = _listen(home)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        channel, _ = listener.accept()
        channel.settimeout(_REQUEST_SECONDS)
        threading.Thread(target=_serve, args=(service, channel), daemon=True).start()


def _passphrase(home: Home, file: Path | None) -> str:
    """The passphrase, out of a file or from the terminal; the terminal echoes again however asking ends."""
    if file is None and home.custodian_passphrase.is_file():
        file = home.custodian_passphrase
    prompt = f"Passphrase of {home.custodian_keystore}: "
    signal.signal(signal.SIGTERM, _leave)
    try:
        return read_passphrase(file, prompt=prompt, option="--custodian-passphrase-file")
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(*_: object) -> None:
    """End while the passphrase is asked for, by way of what makes the terminal echo again; once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def _serve(service: Service, channel: socket.socket) -> None:
    try:
        service.serve(channel)
    except UsufructError as exc:
        _log.warning("a connection was closed: %s", exc)
    except Exception:
        _log.exception("a connection was closed")


def _listen(home: Home) -> socket.socket:
    """The socket in the home, mode 0600; one that an earlier process left is replaced.

    Bound by its name alone: whole paths of sockets may have 107 bytes only.
    """
    os.chdir(home.root)
    Path(wire.SOCKET_NAME).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(wire.SOCKET_NAME)
    finally:
        os.umask(before)
    listener.listen(64)
    return listener


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="usufruct_node.custodian")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--passphrase-file", type=Path)
    parser.add_argument("--key-openings", type=int, required=True)
    given = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        run(Home.at(given.home), given.passphrase_file, key_openings=given.key_openings)
    except UsufructError as exc:
        sys.stderr.write(f"custodian: {exc}\n")
        return exc.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
