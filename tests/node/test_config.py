"""Settings: defaults, the home's file, the environment; nothing unknown and nothing out of range."""

from __future__ import annotations

from pathlib import Path

import pytest

from usufruct.errors import ConfigurationError
from usufruct_node.config import NodeSettings


def test_defaults_listen_on_loopback_only(tmp_path: Path) -> None:
    settings = NodeSettings.load(tmp_path)
    assert (settings.listen_host, settings.listen_port, settings.api_port) == ("127.0.0.1", 0, 0)
    assert settings.quota_bytes is None


def test_the_file_overrides_defaults_and_the_environment_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node.toml").write_text("workers = 3\nlisten_port = 4001\n")
    monkeypatch.setenv("USUFRUCT_NODE_WORKERS", "5")
    settings = NodeSettings.load(tmp_path)
    assert (settings.workers, settings.listen_port) == (5, 4001)


def test_what_one_member_may_take_is_a_setting(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("peer_streams = 2\npeer_bytes_per_s = 1e6\npeer_bytes_per_day = 7\n")
    quota = NodeSettings.load(tmp_path).quota()
    assert (quota.streams, quota.bytes_per_s, quota.bytes_per_day) == (2, 1e6, 7)
    for wrong in ("peer_streams = 0", "peer_blocks_per_s = 0", "peer_bytes_per_day = -1"):
        (tmp_path / "node.toml").write_text(wrong)
        with pytest.raises(ConfigurationError):
            NodeSettings.load(tmp_path)


def test_settings_of_two_homes_do_not_mix(tmp_path: Path) -> None:
    for name, workers in (("one", 2), ("two", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "node.toml").write_text(f"workers = {workers}\n")
    assert [NodeSettings.load(tmp_path / name).workers for name in ("one", "two", "one")] == [2, 4, 2]


@pytest.mark.parametrize(
    "content",
    [
        "listen_prot = 1",
        "listen_port = 65536",
        "listen_port = -1",
        'listen_port = "many"',
        "api_port = 1.5",
        "workers = 0",
        "workers = 65",
        "poll_s = 0",
        "poll_s = -1",
        "poll_s = nan",
        "poll_s = inf",
        "quota_bytes = 0",
        "ledger_patience_s = inf",
        "ledger_patience_s = 0.0",
        "workers = ",
        "[node]\nworkers = 1",
        "workers = 1\nworkers = 2",
        "\x00",
    ],
)
def test_what_is_unknown_or_out_of_range_in_the_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "node.toml").write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        NodeSettings.load(tmp_path)
    assert "node.toml" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [("LISTEN_PROT", "1"), ("WORKERS", "0"), ("WORKERS", "many"), ("POLL_S", "inf"), ("QUOTA_BYTES", "-1")],
)
def test_what_is_unknown_or_out_of_range_in_the_environment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"USUFRUCT_NODE_{name}", value)
    with pytest.raises(ConfigurationError):
        NodeSettings.load(tmp_path)


def test_an_unknown_setting_of_the_file_is_answered_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("listen_prot = 1")
    with pytest.raises(ConfigurationError, match="listen_prot") as told:
        NodeSettings.load(tmp_path)
    assert told.value.hint is not None
    assert "node.toml" in told.value.hint and "listen_port" in told.value.hint
