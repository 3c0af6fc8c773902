"""The HTTP interface of a running node: who is let in, what is refused, and how it says so."""

from __future__ import annotations

import http.client
import json
import re
import stat
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bundle_fixture import SmallBundle
from node_fixture import api_of
from usufruct.content import Cid, Codec, dag
from usufruct.content.node import NodeContent
from usufruct.errors import (
    BlockMismatchError,
    BlockNotFoundError,
    ConfigurationError,
    ContentError,
    InputError,
    NodeUnreachableError,
)
from usufruct.home import Home
from usufruct_node.api import MAX_BODY_BYTES


@pytest.fixture(scope="module")
def api(node_home: Home) -> Iterator[httpx.Client]:
    with api_of(node_home) as client:
        yield client


@pytest.fixture(scope="module")
def content(node_home: Home) -> Iterator[NodeContent]:
    client = NodeContent(node_home.node_address().url, node_home.api_token)
    yield client
    client.close()


FILL = {"cid": str(Cid.of(b"x", Codec.RAW)), "kind": "policy", "prefix": "0000"}
PUBLIC = {"/health", "/metrics"}


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer", "Basic bm9ydGg6", "Bearer \xe9", "token"])
def test_without_the_token_every_path_but_health_and_metrics_is_401(
    api: httpx.Client, given: str | None
) -> None:
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    described = api.get("/openapi.json").json()["paths"]
    assert described.keys() >= {
        *PUBLIC,
        "/status",
        "/jobs",
        "/blocks",
        "/blocks/{cid}",
        "/records/{kind}/{cid}",
    }
    with httpx.Client(base_url=api.base_url, trust_env=False) as stranger:
        for path, methods in described.items():
            filled = re.sub(r"\{(\w+)\}", lambda name: FILL.get(name[1], "00" * 32), path)
            for method in methods:
                answer = stranger.request(method, filled, headers=headers)
                assert answer.status_code == (200 if path in PUBLIC else 401), (method, path)
                if answer.status_code == 401:
                    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_the_token_file_is_private(node_home: Home) -> None:
    assert stat.S_IMODE(node_home.api_token.stat().st_mode) == 0o600
    assert len(node_home.api_token.read_text().strip()) >= 43


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example:1", "", "[::2]:80"],
)
@pytest.mark.parametrize("path", ["/health", "/metrics", "/status", "/openapi.json"])
def test_a_foreign_host_header_is_refused_even_with_the_token(
    api: httpx.Client, host: str, path: str
) -> None:
    assert api.get(path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:1", "127.0.0.1:65535", "[::1]:80"])
def test_loopback_names_are_let_in(api: httpx.Client, host: str) -> None:
    assert api.get("/members", headers={"Host": host}).status_code == 200


def raw(api: httpx.Client, headers: dict[str, str], body: bytes = b"") -> int:
    """Status of a POST whose headers are sent as they are."""
    connection = http.client.HTTPConnection(urlsplit(str(api.base_url)).netloc, timeout=20)
    connection.putrequest("POST", "/blocks")
    for name, value in (dict(api.headers.items()) | headers).items():
        if name.lower() in ("authorization", "content-length", "transfer-encoding"):
            connection.putheader(name, value)
    connection.endheaders()
    if body:
        connection.send(body)
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_body_too_large_is_refused_before_it_is_read(api: httpx.Client) -> None:
    assert raw(api, {"Content-Length": str(MAX_BODY_BYTES + 1)}) == 413
    assert raw(api, {"Content-Length": str(1 << 70)}) in (400, 413)


def test_a_body_of_unknown_length_is_refused(api: httpx.Client) -> None:
    assert raw(api, {"Transfer-Encoding": "chunked"}, b"1\r\na\r\n0\r\n\r\n") == 413
    assert raw(api, {"Content-Length": "²"}) in (400, 413)
    assert raw(api, {"Content-Length": "-1"}) in (400, 413)


@pytest.mark.parametrize("path", ["/jobs/{}", "/artifacts/{}", "/lineage/{}", "/impact/{}", "/grants/{}"])
def test_an_unknown_record_is_404_and_a_malformed_id_is_400(api: httpx.Client, path: str) -> None:
    missing = api.get(path.format("ab" * 32))
    assert missing.status_code == 404
    assert missing.json()["error"] == "UnknownRecordError"
    assert api.get(path.format("0x" + "ab" * 32)).status_code == 404
    for malformed in ("ab", "zz" * 32, "ab" * 33, "%00", "..%5c", "ab" * 31 + "%20a"):
        answer = api.get(path.format(malformed))
        assert answer.status_code == 400, malformed
        assert answer.json()["hint"]


@pytest.mark.parametrize(
    "cid",
    [
        "x",
        "..",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%00",
        "bafkrei",
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG",
        str(Cid.of(b"x", Codec.RAW)).upper(),
        str(Cid.of(b"x", Codec.RAW)) + "a",
        "é",
    ],
)
def test_path_traversal_a_malformed_cid_is_refused(api: httpx.Client, cid: str) -> None:
    answer = api.get(f"/blocks/{cid}", params={"holder": "north"})
    assert answer.status_code in (400, 404)
    assert "root:" not in answer.text
    if answer.status_code == 400:
        assert answer.json()["error"] == "CidError"
    put = api.put(f"/records/policy/{cid}", content=b"")
    assert put.status_code in (400, 404)


def test_other_bad_queries_are_refused(api: httpx.Client) -> None:
    cid = Cid.of(b"nobody has this", Codec.RAW)
    for holder in ("", "Not A Label", "\u0661", "x" * 40):
        assert api.get(f"/blocks/{cid}", params={"holder": holder}).status_code == 400
    assert api.get(f"/blocks/{cid}").status_code == 422
    assert api.get("/jobs", params={"state": "flying"}).status_code == 400
    for limit in (0, 1001, "many"):
        assert api.get("/jobs", params={"limit": limit}).status_code == 422
    assert api.get(f"/lineage/{'00' * 32}", params={"direction": "sideways"}).status_code == 422
    assert api.get("/nowhere").status_code == 404
    assert api.get("/docs").status_code == 404


def test_a_block_that_the_holder_lacks_is_404(api: httpx.Client) -> None:
    cid = Cid.of(b"nobody has this", Codec.RAW)
    assert api.get(f"/blocks/{cid}", params={"holder": "north"}).status_code == 404
    stranger = api.get(f"/blocks/{cid}", params={"holder": "stranger"})
    assert stranger.status_code == 502
    assert "not a member" in stranger.json()["detail"]


def test_health_metrics_and_the_description_are_served_without_a_token(node_home: Home) -> None:
    with api_of(node_home, token=False) as public:
        health = public.get("/health")
        assert (health.status_code, health.json()["ok"]) == (200, True), health.text
        families = {f.name: f for f in text_string_to_metric_families(public.get("/metrics").text)}
        assert families["usufruct_healthy"].samples[0].value == 1
        assert families["usufruct_indexed_block"].samples[0].value > 0
        assert families["usufruct_jobs"].samples
        assert public.get("/openapi.json").json()["info"]["title"] == "Usufruct node"


def test_status_tells_the_operator_what_it_needs(api: httpx.Client, node_home: Home) -> None:
    status = api.get("/status").json()
    assert status["organisation"] == "north"
    assert status["jobs_in_trouble"] == {}
    assert status["chain_id"] == 881812
    assert node_home.node_passphrase.read_text() not in json.dumps(status)
    (member,) = api.get("/members").json()
    assert (member["name"], member["status"]) == ("north", "ACTIVE")


# Content.


def test_a_bundles_blocks_are_staged_first_and_kept_when_its_record_links_them(
    content: NodeContent, bundle: SmallBundle
) -> None:
    cids = list(content.stage(bundle.blocks))
    assert cids == list(bundle.manifest.blocks)
    cid = content.put_record("bundle", bundle.record)
    assert content.get(cids[0], holder="north") == bundle.blocks[0]
    assert content.get_record(cid, holder="north")["scope"] == bundle.record["scope"]


def test_a_bundle_whose_block_was_not_staged_is_refused_and_nothing_is_kept(
    content: NodeContent, bundle: SmallBundle, node_home: Home
) -> None:
    staged = b"staged, but the bundle is refused"
    (first,) = content.stage([staged])
    record = bundle.record | {"blocks": [first, Cid.of(b"never staged", Codec.RAW)]}
    with pytest.raises(InputError, match="not staged"):
        content.put_record("bundle", record)
    with pytest.raises(BlockNotFoundError):
        content.get(dag.cid_of(record), holder="north")


def test_a_staged_block_alone_is_business_of_nobody(content: NodeContent, api: httpx.Client) -> None:
    before = api.get("/status").json()["holdings"]
    list(content.stage([b"only staged"]))
    assert api.get("/status").json()["holdings"] == before


def test_records_must_be_what_they_are_called_and_hash_to_their_cid(
    content: NodeContent, api: httpx.Client, bundle: SmallBundle
) -> None:
    policy = bundle.policy.to_record()
    data = dag.encode(policy)
    for kind in ("bundle", "status", "parameters", "public", "surprise", "..%2fpolicy"):
        answer = api.put(f"/records/{kind}/{Cid.of(data, Codec.DAG_CBOR)}", content=data)
        assert answer.status_code in (400, 404, 422), kind
    other = Cid.of(data + b"\0", Codec.DAG_CBOR)
    assert api.put(f"/records/policy/{other}", content=data).status_code == 422
    assert api.put(f"/records/policy/{Cid.of(data, Codec.RAW)}", content=data).status_code in (400, 422)
    for junk in (b"", b"\xff", data[:-1], data + b"\0", b"\xa0", b"\x80"):
        answer = api.put(f"/records/policy/{Cid.of(junk, Codec.DAG_CBOR)}", content=junk)
        assert answer.status_code == 422, junk
    assert content.put_record("policy", policy) == Cid.of(data, Codec.DAG_CBOR)


@pytest.mark.parametrize("body", [b"", b"\xa0", b"\x01", b"\x81\x01", b"\x81\x61a", b"\xff", b"\x9f\xff"])
def test_what_is_no_list_of_blocks_is_not_staged(api: httpx.Client, body: bytes) -> None:
    before = api.get("/status").json()["blocks_bytes"]
    assert api.post("/blocks", content=body).status_code in (400, 422)
    assert api.get("/status").json()["blocks_bytes"] == before


def test_peers_give_way_errors_are_translated_by_the_client(
    content: NodeContent, tmp_path, node_home: Home
) -> None:
    with pytest.raises(BlockNotFoundError):
        content.query(f"/jobs/{'00' * 32}")
    with pytest.raises(InputError):
        content.query("/jobs/short")
    (tmp_path / "token").write_text("wrong")
    with pytest.raises(ContentError, match="bearer"):
        NodeContent(node_home.node_address().url, tmp_path / "token").query("/status")
    with pytest.raises(NodeUnreachableError):
        NodeContent("http://127.0.0.1:1", tmp_path / "token", timeout_s=2).query("/status")
    with pytest.raises(ConfigurationError, match="token"):
        NodeContent(node_home.node_address().url, tmp_path / "absent")


def test_malicious_peer_a_block_whose_bytes_are_not_its_cids_is_refused_by_the_client(
    content: NodeContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cid,) = content.stage([b"honest bytes"])
    honest = content._client.request

    def lying(*args: object, **kwargs: object) -> httpx.Response:
        return httpx.Response(200, content=honest(*args, **kwargs).content + b"!")

    monkeypatch.setattr(content._client, "request", lying)
    with pytest.raises(BlockMismatchError):
        content.get(cid, holder="north")
