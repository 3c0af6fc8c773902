"""Keystores, envelopes, identities and key domains."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from usufruct.errors import EnvelopeError, KeyStoreError, WrongPassphraseError
from usufruct.he.bfv import open_coefficients
from usufruct.keys import he_keys, hpke, identity
from usufruct.keys.keystore import KeyStore, read_passphrase

PASSPHRASE = "a long enough passphrase"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a keystore with one entry."""
    path = tmp_path_factory.mktemp("keys") / "sample.keys"
    KeyStore.create(path, PASSPHRASE).put("secret", b"\x00\xff value")
    return path.read_bytes()


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_entries_survive_reopening_and_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "node.keys"
    store = KeyStore.create(path, PASSPHRASE)
    store.put("one", b"1")
    store.put("two", b"\x00" * 1000)
    store.put("one", b"uno", replace=True)
    store.delete("two")
    again = KeyStore.open(path, PASSPHRASE)
    assert (again.names(), again.get("one"), "two" in again, "one" in again) == (["one"], b"uno", False, True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.keys"]


def test_nothing_secret_is_readable_in_the_file_or_the_representation(tmp_path: Path) -> None:
    path = tmp_path / "node.keys"
    store = KeyStore.create(path, PASSPHRASE)
    store.put("entry-name", b"entry-value-in-the-clear")
    for hidden in (b"entry-name", b"entry-value", PASSPHRASE.encode(), b"ZW50cnktdmFsdWU"):
        assert hidden not in path.read_bytes()
    assert repr(store) == f"KeyStore({str(path)!r})"


def test_each_write_uses_a_new_nonce(tmp_path: Path) -> None:
    store = KeyStore.create(tmp_path / "k", PASSPHRASE)
    nonces = set()
    for _ in range(5):
        store.put("same", b"same", replace=True)
        nonces.add(json.loads((tmp_path / "k").read_bytes().partition(b"\n")[0])["nonce"])
    assert len(nonces) == 5


def test_wrong_passphrase_is_told_apart_and_changes_nothing(tmp_path: Path, sample: bytes) -> None:
    path = write(tmp_path / "k", sample)
    with pytest.raises(WrongPassphraseError):
        KeyStore.open(path, PASSPHRASE + " ")
    assert path.read_bytes() == sample


def test_keystore_tampered_in_any_region_is_refused(tmp_path: Path, sample: bytes) -> None:
    header = sample.index(b"\n")
    path = tmp_path / "k"
    for offset in (0, sample.index(b"nonce") + 9, header, header + 1, len(sample) - 1):
        mutant = bytearray(sample)
        mutant[offset] ^= 1
        with pytest.raises(KeyStoreError) as caught:
            KeyStore.open(write(path, bytes(mutant)), PASSPHRASE)
        assert not isinstance(caught.value, WrongPassphraseError)
    for wrong in (b"", sample[:header], sample[:-1], sample[header:], sample + b"\0", b"\x80" + sample):
        with pytest.raises(KeyStoreError):
            KeyStore.open(write(path, wrong), PASSPHRASE)


def test_header_can_ask_for_no_other_cost(tmp_path: Path, sample: bytes) -> None:
    for old, new in ((b'"memory_kib":65536', b'"memory_kib":8'), (b'"iterations":3', b'"iterations":1'),
                     (b'"memory_kib":65536', b'"memory_kib":9999999'), (b'"version":1', b'"version":2')):  # fmt: skip
        assert old in sample
        with pytest.raises(KeyStoreError, match="not a keystore of this version"):
            KeyStore.open(write(tmp_path / "k", sample.replace(old, new)), PASSPHRASE)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_keystore_open_to_other_users_is_refused(tmp_path: Path, sample: bytes, mode: int) -> None:
    path = write(tmp_path / "k", sample, mode)
    with pytest.raises(KeyStoreError, match="open to other users") as caught:
        KeyStore.open(path, PASSPHRASE)
    assert caught.value.hint == f"chmod 600 {path}"


def test_missing_directory_special_and_huge_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "directory").mkdir(0o700)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(5 << 20)
    (tmp_path / "huge").chmod(0o600)
    for name in ("missing", "fifo", "directory", "huge"):
        with pytest.raises(KeyStoreError):
            KeyStore.open(tmp_path / name, PASSPHRASE)
    with pytest.raises(KeyStoreError):
        KeyStore.create(tmp_path / "nowhere" / "k", PASSPHRASE)


def test_creation_never_overwrites(tmp_path: Path, sample: bytes) -> None:
    path = write(tmp_path / "k", sample)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for existing in (path, tmp_path / "link"):
        with pytest.raises(KeyStoreError, match="exists already"):
            KeyStore.create(existing, PASSPHRASE)
    assert path.read_bytes() == sample
    assert not (tmp_path / "elsewhere").exists()


def test_missing_and_taken_names_are_typed_errors(tmp_path: Path) -> None:
    store = KeyStore.create(tmp_path / "k", PASSPHRASE)
    store.put("name", b"1")
    for refused in (
        lambda: store.get("other"),
        lambda: store.delete("other"),
        lambda: store.put("name", b"2"),
        lambda: store.put_all({"new": b"", "name": b"2"}),
    ):
        with pytest.raises(KeyStoreError):
            refused()
    assert (store.names(), store.get("name")) == (["name"], b"1")


def test_failed_write_leaves_the_old_keystore_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeyStore.create(tmp_path / "k", PASSPHRASE)
    store.put("name", b"1")
    before = (tmp_path / "k").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("usufruct.keys.keystore.os.fsync", full)
    with pytest.raises(KeyStoreError, match="No space left"):
        store.put("other", b"2")
    assert (tmp_path / "k").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["k"]


def test_two_processes_that_write_at_once_lose_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "k"
    KeyStore.create(path, PASSPHRASE)
    code = (
        "import sys; from pathlib import Path; from usufruct.keys.keystore import KeyStore\n"
        f"store = KeyStore.open(Path(sys.argv[1]), {PASSPHRASE!r})\n"
        "for i in range(15): store.put(f'{sys.argv[2]}-{i:02}', bytes([i]))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    assert KeyStore.open(path, PASSPHRASE).names() == [f"{p}-{i:02}" for p in "ab" for i in range(15)]


def test_passphrase_comes_from_a_private_file_or_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "passphrase", "grüße\nsecond line\n".encode())
    assert read_passphrase(path) == "grüße"
    path.chmod(0o644)
    with pytest.raises(KeyStoreError, match="open to other users"):
        read_passphrase(path)
    for wrong in (b"", b"\nx", b"\xff\xfe"):
        with pytest.raises(KeyStoreError):
            read_passphrase(write(path, wrong))
    monkeypatch.setattr("usufruct.keys.keystore._has_terminal", lambda: True)
    answers = iter(["typed", "typed", "one", "two", ""])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    assert read_passphrase(None, confirm=True) == "typed"
    with pytest.raises(KeyStoreError, match="differ"):
        read_passphrase(None, confirm=True)
    with pytest.raises(KeyStoreError, match="empty"):
        read_passphrase(None)

    def at_end(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("getpass.getpass", at_end)
    with pytest.raises(KeyStoreError, match="no passphrase was entered"):
        read_passphrase(None)


def test_without_a_terminal_nothing_is_asked_and_the_option_is_named() -> None:
    code = (
        "from usufruct.errors import KeyStoreError; from usufruct.keys.keystore import read_passphrase\n"
        "try: read_passphrase(None, prompt='Passphrase of x: ', option='--some-file')\n"
        "except KeyStoreError as exc: print(exc, exc.hint, sep='|')"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        input="typed\n",
        capture_output=True,
        text=True,
        start_new_session=True,
        check=True,
    )
    said = "there is no terminal to ask at: Passphrase of x|name a file that holds it with --some-file\n"
    assert (answer.stdout, answer.stderr) == (said, "")


@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\r"])
def test_only_a_line_feed_ends_the_line_of_a_passphrase(tmp_path: Path, character: str) -> None:
    """Else what is behind the character protects nothing, and typing the whole does not open the keystore."""
    whole = f"before{character}after"
    for number, end in enumerate(("", "\n", "\r\n", "\nnext", "\r\nnext\r\n")):
        path = write(tmp_path / str(number), (whole + end).encode())
        assert read_passphrase(path) == whole


def test_passphrase_that_is_no_text_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(KeyStoreError, match="UTF-8") as refused:
        KeyStore.create(tmp_path / "k", "typed\udce4")
    assert refused.value.__suppress_context__, "what Python says shows characters of the passphrase"
    assert not (tmp_path / "k").exists()


def test_empty_passphrase_makes_no_keystore(tmp_path: Path) -> None:
    with pytest.raises(KeyStoreError, match="empty"):
        KeyStore.create(tmp_path / "k", "")
    assert not (tmp_path / "k").exists()


def test_envelope_opens_for_its_recipient_and_context_only() -> None:
    private, other = hpke.generate_hpke_key(), hpke.generate_hpke_key()
    sealed = hpke.seal_to(hpke.hpke_public(private), b"result", b"job 1")
    assert hpke.open_from(private, sealed, b"job 1") == b"result"
    assert len(sealed) == len(b"result") + hpke.OVERHEAD_BYTES
    for key, data, info in (
        (other, sealed, b"job 1"),
        (private, sealed, b"job 2"),
        (private, sealed[:-1], b"job 1"),
        (private, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"job 1"),
        (private, bytes([sealed[0] ^ 1]) + sealed[1:], b"job 1"),
        (private, b"", b"job 1"),
        (private, bytes(32) + sealed[32:], b"job 1"),
        (b"short", sealed, b"job 1"),
    ):
        with pytest.raises(EnvelopeError):
            hpke.open_from(key, data, info)


def test_two_envelopes_of_one_message_differ() -> None:
    public = hpke.hpke_public(hpke.generate_hpke_key())
    assert hpke.seal_to(public, b"x", b"") != hpke.seal_to(public, b"x", b"")


@pytest.mark.parametrize("public", [b"", b"\x01" * 31, bytes(32)])
def test_unusable_recipient_keys_are_refused(public: bytes) -> None:
    with pytest.raises(EnvelopeError):
        hpke.seal_to(public, b"x", b"")


def test_node_and_authority_keys_live_in_two_keystores(tmp_path: Path) -> None:
    node = KeyStore.create(tmp_path / identity.NODE_KEYSTORE, PASSPHRASE)
    authority = KeyStore.create(tmp_path / identity.AUTHORITY_KEYSTORE, PASSPHRASE)
    node_keys, authority_keys = identity.create_node_keys(node), identity.create_authority_keys(authority)
    assert identity.load_node_keys(node) == node_keys
    assert identity.load_authority_keys(authority) == authority_keys
    assert not set(node.names()) & set(authority.names())
    with pytest.raises(KeyStoreError, match=identity.AUTHORITY_LEDGER_KEY):
        identity.load_authority_keys(node)
    values = [node.get(name) for name in node.names()] + [authority.get(name) for name in authority.names()]
    assert len(set(values)) == 5
    assert {len(value) for value in values} == {32}
    for keys in (node_keys, authority_keys):
        assert repr(keys) == f"{type(keys).__name__}()"


def test_identity_is_never_drawn_twice_into_one_keystore(tmp_path: Path) -> None:
    store = KeyStore.create(tmp_path / "k", PASSPHRASE)
    keys = identity.create_node_keys(store)
    with pytest.raises(KeyStoreError, match="already"):
        identity.create_node_keys(store)
    assert identity.load_node_keys(store) == keys
    store.put(identity.PEER_SEED, b"short", replace=True)
    with pytest.raises(KeyStoreError, match="expected 32"):
        identity.load_node_keys(store)


def test_key_domain_is_stored_found_and_destroyed(tmp_path: Path) -> None:
    import numpy as np

    from usufruct.he.bfv import encrypt_columns

    store = KeyStore.create(tmp_path / "k", PASSPHRASE)
    secret, record = he_keys.create_key_domain()
    he_keys.check_key_domain_record(record)
    he_keys.store_secret(store, secret)
    store.put("unrelated", b"")
    assert he_keys.key_ids(store) == [secret.key_id] == [record["key_id"]]
    block = next(encrypt_columns(np.array([[77]]), secret))[2]
    assert open_coefficients(block, he_keys.load_secret(store, secret.key_id), [0]) == [77]
    with pytest.raises(KeyStoreError, match="already"):
        he_keys.store_secret(store, secret)
    he_keys.destroy_secret(store, secret.key_id)
    with pytest.raises(KeyStoreError):
        he_keys.load_secret(store, secret.key_id)


def test_entry_that_holds_another_domains_secret_is_refused(tmp_path: Path) -> None:
    store = KeyStore.create(tmp_path / "k", PASSPHRASE)
    (one, _), (other, _) = he_keys.create_key_domain(), he_keys.create_key_domain()
    store.put(he_keys.DOMAIN_PREFIX + one.key_id.hex(), other.to_bytes())
    with pytest.raises(KeyStoreError, match="another domain"):
        he_keys.load_secret(store, one.key_id)


def test_forged_key_domain_records_are_refused() -> None:
    _, record = he_keys.create_key_domain()
    for change in (
        {"key_id": bytes(32)},
        {"commitment": bytes(32)},
        {"commitment": b"short"},
        {"parameters_id": bytes(32)},
        {"parameters_id": "text"},
        {"scheme": "ckks"},
        {"secret": b""},
    ):
        with pytest.raises(KeyStoreError):
            he_keys.check_key_domain_record(record | change)
    with pytest.raises(KeyStoreError):
        he_keys.check_key_domain_record({"scheme": "bfv"})


def test_public_record_holds_nothing_of_the_secret() -> None:
    secret, record = he_keys.create_key_domain()
    assert set(record) == {"scheme", "parameters_id", "key_id", "commitment"}
    hidden = secret.to_bytes()[37:]
    published = b"".join(value for value in record.values() if isinstance(value, bytes))
    assert not any(hidden[i : i + 8] in published for i in range(0, len(hidden) - 8))
