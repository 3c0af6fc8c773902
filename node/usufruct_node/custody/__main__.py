"""The custodian's process: unlocks the keystore of homomorphic secrets, gives up the network, answers its node.

Started by the node, with the home as its only argument beside the name of a passphrase file; without such a file it asks at
the terminal itself: the node never sees the passphrase. It ends when its standard input does: then its node is gone.
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
from usufruct_node.config import NodeSettings
from usufruct_node.custody import wire
from usufruct_node.custody.confine import confine
from usufruct_node.custody.service import Service

_log = logging.getLogger("usufruct_node.custody")
_REQUEST_SECONDS = 120.0


def run(home: Home, passphrase_file: Path | None) -> None:
    """Serve until the standard input ends."""
    # A terminal sends it to the whole group: the node decides when its custodian ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    confine()
    default = home.custodian_passphrase if home.custodian_passphrase.is_file() else None
    passphrase = read_passphrase(
        passphrase_file or default, prompt=f"Passphrase of {home.custodian_keystore}: "
    )
    keystore = KeyStore.open(home.custodian_keystore, passphrase)
    service = Service(home, keystore, key_openings=NodeSettings.load(home.root).key_openings)
    listener = _listen(home)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        channel, _ = listener.accept()
        channel.settimeout(_REQUEST_SECONDS)
        threading.Thread(target=_serve, args=(service, channel), daemon=True).start()


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
    parser = argparse.ArgumentParser(prog="usufruct_node.custody")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--passphrase-file", type=Path)
    given = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        run(Home.at(given.home), given.passphrase_file)
    except UsufructError as exc:
        sys.stderr.write(f"custodian: {exc}\n")
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
