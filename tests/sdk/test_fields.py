"""A wrong file is named with its wrong fields and nothing of what stands in it: it may hold a passphrase."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from usufruct.cli.founding import MembersFile
from usufruct.errors import ConfigurationError
from usufruct.home import Home, ParticipantFile
from usufruct.ledger import Network
from usufruct.ledger.network import read_pin
from usufruct_node.config import NodeSettings

SECRET = "hunter2-zebra-quagmire"
READERS: dict[str, Callable[[Path], object]] = {
    "participant": ParticipantFile.load,
    "network": Network.load,
    "validators": read_pin,
    "members": MembersFile.load,
    "organisation": lambda path: Home(path.parent).organisation(),
    "settings": lambda path: NodeSettings.load(path.parent),
}
CONTENTS = [
    SECRET,
    f'"{SECRET}"',
    f'{{"name": ["{SECRET}"], "profile": "{SECRET}", "network_id": "{SECRET}"}}',
    f'chain_id = "{SECRET}"\npoll_s = "{SECRET}"\n',
    f"chain_id = 1\n{SECRET}",
    f"{SECRET}\xff",
]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_refused_is_not_quoted(reader: str, content: str, tmp_path: Path) -> None:
    names = {"organisation": "organisation.json", "settings": "node.toml"}
    path = tmp_path / names.get(reader, "file")
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigurationError) as caught:
        READERS[reader](path)
    told = f"{caught.value} {caught.value.hint}".replace(str(tmp_path), "")
    assert not [part for part in SECRET.split("-") if part in told], told
    assert "pydantic" not in told and "byte 0x" not in told


def test_the_fields_that_are_wrong_are_named(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('poll_s = "soon"\npol_s = 1\n')
    with pytest.raises(ConfigurationError) as caught:
        NodeSettings.load(tmp_path)
    assert "poll_s: Input should be a valid number" in str(caught.value)
    assert "pol_s: Extra inputs are not permitted" in str(caught.value)
    path.write_text("poll_s = 1\npoll_s 2\n")
    with pytest.raises(ConfigurationError, match=r"not TOML \(at line 2, column 8\)"):
        NodeSettings.load(tmp_path)
