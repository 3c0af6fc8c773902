"""`usufruct-node kubo config` and the doctor's look at a running daemon, on a real one."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kubo_fixture import Kubo, new_kubo
from usufruct.content.kubo import deviations, hardened
from usufruct.durable import write_private
from usufruct.errors import ConfigurationError
from usufruct.home import Home
from usufruct_node import kubo as kubo_module
from usufruct_node.cli import app
from usufruct_node.config import NodeSettings
from usufruct_node.kubo import configure, examine_kubo


def settings_of(kubo: Kubo) -> NodeSettings:
    return NodeSettings(kubo_address=kubo.address)


def test_a_daemon_that_runs_under_the_written_configuration_is_private(kubo: Kubo) -> None:
    assert "private" in examine_kubo(kubo.home, settings_of(kubo))


def test_the_configuration_keeps_identity_and_secret_and_no_word_of_kubos_makers(tmp_path: Path) -> None:
    kubo = new_kubo(tmp_path)
    written, token = (kubo.repository / "config").read_bytes(), kubo.home.kubo_token.read_bytes()
    config = json.loads(written)
    assert '"auto"' not in written.decode()
    assert deviations(config, rpc_address=kubo.address) == []
    assert kubo.home.kubo_token.stat().st_mode & 0o777 == 0o600
    assert (kubo.repository / "swarm.key").stat().st_mode & 0o777 == 0o600
    configure(kubo.home, kubo.repository, rpc_address=kubo.address)
    assert (kubo.repository / "config").read_bytes() == written
    configure(kubo.home, kubo.repository, rpc_address=kubo.address, new_secret=True)
    assert kubo.home.kubo_token.read_bytes() != token
    assert json.loads((kubo.repository / "config").read_bytes())["Identity"] == config["Identity"]


def test_the_doctor_names_every_deviation_of_a_daemon_as_its_makers_ship_it(tmp_path: Path) -> None:
    kubo = new_kubo(tmp_path)
    path = kubo.repository / "config"
    config = json.loads(path.read_bytes())
    config["API"] = {"HTTPHeaders": {"Access-Control-Allow-Origin": ["*"]}}
    config["Gateway"]["NoFetch"] = False
    config["Discovery"]["MDNS"]["Enabled"] = True
    config["Import"]["CidVersion"] = 0
    path.write_text(json.dumps(config))
    (kubo.repository / "swarm.key").chmod(0o644)
    with kubo.running(), pytest.raises(ConfigurationError) as caught:
        examine_kubo(kubo.home, settings_of(kubo))
    for said in (
        "API.HTTPHeaders",
        "Gateway.NoFetch",
        "Discovery.MDNS.Enabled",
        "Import.CidVersion",
        "callers who do not know the secret",
        "swarm.key can be read by others",
    ):
        assert said in str(caught.value)
    assert kubo.home.kubo_token.read_text().strip().split(":")[1] not in str(caught.value)


def test_every_required_key_is_looked_at(tmp_path: Path) -> None:
    kubo = new_kubo(tmp_path, harden=False)
    before = json.loads((kubo.repository / "config").read_bytes())
    made = hardened(before, rpc_address=kubo.address, user="node", secret="sixteen or more!")
    assert deviations(made, rpc_address=kubo.address) == []
    named = {deviation.key for deviation in deviations(before, rpc_address=kubo.address)}
    assert {"Bootstrap", "Routing.Type", "AutoConf.Enabled", "Datastore.Spec", "Addresses.API"} <= named
    assert deviations(made, rpc_address="/ip4/127.0.0.1/tcp/1")[0].key == "Addresses.API"


def test_a_directory_that_is_no_repository_says_how_to_make_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        configure(home, tmp_path / "nothing", rpc_address="/ip4/127.0.0.1/tcp/5001")
    assert "ipfs init" in caught.value.hint
    assert not home.kubo_token.exists()


@pytest.mark.parametrize("name", ["swarm.key", "config"])
def test_a_repository_that_cannot_be_written_leaves_the_secret_as_it_is_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def write(path: Path, data: bytes) -> None:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        write_private(path, data)

    kubo = new_kubo(tmp_path)
    before = kubo.home.kubo_token.read_bytes()
    (kubo.repository / "swarm.key").unlink()
    monkeypatch.setattr(kubo_module, "write_private", write)
    with pytest.raises(ConfigurationError, match=f"{name} cannot be written: Permission denied") as caught:
        configure(kubo.home, kubo.repository, rpc_address=kubo.address, new_secret=True)
    assert str(kubo.repository) in caught.value.hint
    assert kubo.home.kubo_token.read_bytes() == before
    monkeypatch.undo()
    configure(kubo.home, kubo.repository, rpc_address=kubo.address, new_secret=True)
    assert kubo.home.kubo_token.read_text().strip() in (kubo.repository / "config").read_text()
    assert kubo.home.kubo_token.read_bytes() != before


def test_the_command_writes_what_the_daemon_then_runs_under(tmp_path: Path) -> None:
    kubo = new_kubo(tmp_path, harden=False)
    (kubo.home.root / "organisation.json").write_text('{"name": "north", "roles": ["steward"]}')
    words = [
        "kubo",
        "config",
        "--home",
        kubo.home.root,
        "--repository",
        kubo.repository,
        "--rpc",
        kubo.address,
    ]
    answer = CliRunner().invoke(app, [str(word) for word in words])
    assert answer.exit_code == 0, answer.output
    assert kubo.home.kubo_token.read_text().strip() not in answer.output
    with kubo.running():
        examine_kubo(kubo.home, settings_of(kubo))
