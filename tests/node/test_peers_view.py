"""What an operator sees of the peers: who is connected, and why somebody was refused."""

from __future__ import annotations

import json

import pytest
import trio
from typer.testing import CliRunner

from node_fixture import api_of
from usufruct.errors import PeerError
from usufruct.home import Home
from usufruct_node.cli import app
from usufruct_node.peers import PeerHost, PeerIdentity

STRANGER = PeerIdentity.from_seed(b"s" * 32)


def knock(multiaddr: str) -> None:
    """A stranger tries to connect."""

    async def scenario() -> None:
        host = PeerHost(
            identity=STRANGER,
            is_member=lambda peer_id: True,
            authorise=lambda peer_id, cid: False,
            read_block=lambda cid: None,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            with pytest.raises(PeerError):
                await host.line(multiaddr.rsplit("/", 1)[1], multiaddr)
            nursery.cancel_scope.cancel()

    trio.run(scenario)


def test_a_refused_stranger_is_shown_with_the_reason(node_home: Home) -> None:
    with api_of(node_home) as api:
        knock(api.get("/peers").json()["listening"])
        told = api.get("/peers").json()
    assert told["refused"]["not a member"] >= 1
    refusal = told["last_refusals"][-1]
    assert (refusal["organisation"], refusal["peer_id"], refusal["reason"], refusal["cid"]) == (
        None,
        STRANGER.peer_id,
        "not a member",
        None,
    )
    assert told["quota"]["streams"] == 8
    assert told["connected"] == []
    assert told["private_network"] is False


def test_the_command_prints_tables_and_json(node_home: Home) -> None:
    with api_of(node_home) as api:
        knock(api.get("/peers").json()["listening"])
    shown = CliRunner().invoke(app, ["peers", "--home", str(node_home.root)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "no active member of the network" in shown.output
    assert "each member: 8 streams at once" in shown.output
    printed = CliRunner().invoke(app, ["peers", "--home", str(node_home.root), "--json"])
    assert json.loads(printed.stdout)["last_refusals"][-1]["peer_id"] == STRANGER.peer_id
