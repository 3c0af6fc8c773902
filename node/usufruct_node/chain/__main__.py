"""`python -m usufruct_node.chain`: the embedded chain in the foreground.

SIGTERM and SIGINT stop it after a checkpoint. Errors are one line, with what to do next.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from functools import partial
from pathlib import Path

import trio

from usufruct.errors import UsufructError
from usufruct_node.chain.service import serve_chain
from usufruct_node.chain.settings import ChainSettings


def main(arguments: list[str] | None = None) -> int:
    """Run the chain that the command line names and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m usufruct_node.chain", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="data directory")
    parser.add_argument("--chain-id", type=int, required=True)
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 (default) keeps the last one")
    parser.add_argument("--block-interval", type=float, default=0.25, help="seconds, while busy")
    parser.add_argument("--idle-interval", type=float, default=2.0, help="seconds, while idle")
    parser.add_argument("--checkpoint-every", type=int, default=2000, help="blocks between checkpoints")
    parser.add_argument("--anvil", type=Path, help="the Anvil executable")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("usufruct").setLevel(logging.INFO)
    try:
        settings = ChainSettings(
            home=given.home.absolute(),
            chain_id=given.chain_id,
            port=given.port,
            block_interval_s=given.block_interval,
            idle_interval_s=given.idle_interval,
            checkpoint_every=given.checkpoint_every,
            anvil=given.anvil,
        )
        trio.run(_until_signal, settings)
    except UsufructError as exc:
        sys.stderr.write(f"error: {exc}\n" + (f"hint: {exc.hint}\n" if exc.hint else ""))
        return exc.exit_code
    return 0


async def _until_signal(settings: ChainSettings) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        try:
            async with trio.open_nursery() as nursery:
                endpoint = await nursery.start(partial(serve_chain, settings))
                sys.stderr.write(f"chain {settings.chain_id} listens at {endpoint.url}\n")
                await anext(aiter(signals))
                sys.stderr.write("stopping after a checkpoint\n")
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            expected = group.subgroup(UsufructError)
            if expected is None:
                raise
            cause: BaseException = expected
            while isinstance(cause, BaseExceptionGroup):
                cause = cause.exceptions[0]
            raise cause from None


if __name__ == "__main__":
    sys.exit(main())
