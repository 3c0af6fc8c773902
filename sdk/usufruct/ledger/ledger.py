"""The contracts as typed calls on records. Reads finalised state; writes only when opened with a sender."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from usufruct.errors import (
    ConfigurationError,
    LedgerError,
    TransactionRevertedError,
    WrongContractCodeError,
)
from usufruct.ledger.abi import CONTRACTS, from_abi, load_abi
from usufruct.ledger.compile import compare_runtime, identify_runtime, load_artifact
from usufruct.ledger.endpoint import Endpoint, Head, natural, well_formed
from usufruct.ledger.endpoints import Endpoints
from usufruct.ledger.finality.witness import is_final, reaches_quorum
from usufruct.ledger.health import ChainHealth
from usufruct.ledger.jobs import (
    NO_COMMITMENTS,
    NO_JOB,
    NO_REQUEST,
    NOBODY,
    commitments_of,
    job_of,
    openings_of,
    request_of,
    steps_with_request,
)
from usufruct.ledger.network import Network
from usufruct.ledger.sender import Receipt, Sender
from usufruct.ledger.series import check_series
from usufruct.records import (
    Artifact,
    ArtifactId,
    BudgetAccount,
    ConsentEpoch,
    GrantId,
    Job,
    JobId,
    JobProgress,
    KeyDomain,
    KeyId,
    LedgerEvent,
    OrgId,
    Participant,
    Refusal,
    Timings,
    UsageGrant,
)

Record = TypeVar("Record")

_SELECTOR_BYTES = 4
_WORD_BYTES = 32
_HASH_CHARACTERS = 2 + 64
_NUMBER_CHARACTERS = 2 + 16


class Ledger:
    """One network, through its endpoints, optionally as one account."""

    def __init__(self, network: Network, endpoint: Endpoint, sender: Sender | None = None) -> None:
        self.network = network
        self.endpoint = endpoint
        self._sender = sender
        self._emitters = {network.contracts[n].lower(): (n, load_abi(n).events) for n in CONTRACTS}

    @classmethod
    def open(
        cls,
        network: Network,
        *,
        private_key: bytes | None = None,
        journal: Path | None = None,
        patience: float = 30.0,
        rpc_urls: Sequence[str] = (),
    ) -> Ledger:
        """Connect and check that this is the right chain with the right contracts.

        Parameters
        ----------
        journal :
            File that keeps signed transactions until their outcome is known; see `usufruct.ledger.journal`.
        patience :
            Seconds for which a call is repeated while no endpoint is fit to answer it.
        rpc_urls :
            Endpoints to use before those of the network file.

        Raises
        ------
        WrongChainError, WrongContractCodeError, LedgerUnreachableError, StaleLedgerError
        """
        pin = network.finality if network.chain.proof == "warp" else None
        endpoint = Endpoints(
            (*rpc_urls, *network.rpc_urls),
            profile=network.chain,
            chain_id=network.chain_id,
            genesis_hash=network.genesis_hash,
            patience=patience,
            arbiter=None if pin is None else partial(is_final, network.chain, pin),
            census=None if pin is None else partial(reaches_quorum, pin),
        )
        endpoint.check_chain(network.chain_id, network.genesis_hash)
        sender = (
            None if private_key is None else Sender(endpoint, network.chain_id, private_key, journal=journal)
        )
        ledger = cls(network, endpoint, sender)
        ledger.check_address_book()
        return ledger

    @property
    def address(self) -> str:
        """Address of the account that this ledger sends from."""
        return self._require_sender().address

    def check_address_book(self) -> None:
        """Check every contract of the network file: in the on-chain address book, with the code of this package.

        Raises
        ------
        WrongContractCodeError
        """
        for name in CONTRACTS:
            address = self.network.contracts[name]
            identify_runtime(name, self.endpoint.code(address))
        book = load_artifact("AddressBook")
        compare_runtime(book, self.endpoint.code(self.network.address_book))
        lookup = load_abi("AddressBook").functions["addressOf"]
        calls = [
            (
                "eth_call",
                (
                    {
                        "to": self.network.address_book,
                        "data": "0x" + lookup.encode([name.encode().ljust(32, b"\0")]).hex(),
                    },
                    self.network.chain.finality_tag,
                ),
            )
            for name in CONTRACTS
        ]
        for name, word in zip(CONTRACTS, self.endpoint.batch(calls), strict=True):
            with well_formed(self.endpoint.url):
                (recorded,) = lookup.decode(bytes.fromhex(word[2:]))
            if recorded.lower() != self.network.contracts[name].lower():
                raise WrongContractCodeError(
                    f"the address book names {recorded} as {name}, the network file {self.network.contracts[name]}"
                )

    def read(self, contract: str, function: str, *arguments: object) -> tuple[Any, ...]:
        """Call a view at the newest finalised block; decoded words."""
        codec = load_abi(contract).functions[function]
        address, tag = self.network.contracts[contract], self.network.chain.finality_tag
        return self.endpoint.view(address, codec, arguments, tag)

    def transact(self, contract: str, function: str, *arguments: object, least_gas: int = 0) -> Receipt:
        """Send one call and wait until it is final; see `Sender.transact`."""
        target, data = self.call_data(contract, function, *arguments)
        return self._require_sender().transact(target, data, least_gas=least_gas)

    def transact_once(
        self,
        contract: str,
        function: str,
        arguments: Callable[[int], Sequence[object]],
        fresh: int,
        *,
        within: int | None = None,
    ) -> Receipt:
        """Send one call that has a time or a random number in it, as `transact` does.

        An attempt at the same call that was given up while it was on its way is taken up, whatever its number, and nothing
        sent twice. One whose number differs by more than `within` was another call.
        """
        number = self._resumed(contract, function, arguments, fresh)
        if within is not None and abs(number - fresh) > within:
            number = fresh
        return self.transact(contract, function, *arguments(number))

    def _resumed(
        self, contract: str, function: str, arguments: Callable[[int], Sequence[object]], fresh: int
    ) -> int:
        """The number that an earlier attempt at a call was made with, if it is on its way and was given up; else `fresh`."""
        target, data = self.call_data(contract, function, *arguments(fresh))
        _, other = self.call_data(contract, function, *arguments(fresh ^ 1))
        differs = next(at for at, (one, two) in enumerate(zip(data, other, strict=True)) if one != two)
        start = differs - (differs - _SELECTOR_BYTES) % _WORD_BYTES
        earlier = self._require_sender().given_up(target, data, slice(start, start + _WORD_BYTES))
        return fresh if earlier is None else int.from_bytes(earlier, "big")

    def call_data(self, contract: str, function: str, *arguments: object) -> tuple[str, bytes]:
        """Address and call data of a call: for proposals to the council and for batches.

        Functions of `JobLedger` that want a job's request back take the job's id in its place, and `revealVerdicts` takes
        `Reveal` records: the rest is read from the job's events.
        """
        if contract == "JobLedger" and function in steps_with_request():
            arguments = self._with_past(function, *arguments)
        return self.network.contracts[contract], load_abi(contract).functions[function].encode(arguments)

    def _with_past(self, function: str, *arguments: Any) -> tuple[object, ...]:
        job_id, *others = arguments
        events = self.job_events(job_id)
        if not events:
            return NOBODY, NO_REQUEST, *([NO_COMMITMENTS, []] if function == "revealVerdicts" else others)
        requester = events[0].args["requester"]
        if function == "revealVerdicts":
            committed = commitments_of(events)
            others = [committed, openings_of(committed, *others)]
        return requester, request_of(events[0]), *others

    def transact_many(
        self, calls: Sequence[tuple[str | None, bytes]], *, gas: int = 1_000_000
    ) -> list[Receipt]:
        """Send independent calls as one pre-signed batch; see `Sender.transact_many`."""
        return self._require_sender().transact_many(calls, gas=gas)

    def events(self, first: int, last: int) -> list[LedgerEvent]:
        """Decoded events of all contracts in finalised blocks first..last, in order.

        Raises
        ------
        LedgerUnreachableError, LedgerError
            If the endpoint does not answer, or not in a form that makes sense.
        """
        return self._decoded(
            self.endpoint.logs([self.network.contracts[name] for name in CONTRACTS], first, last)
        )

    def job_events(self, job_id: JobId) -> list[LedgerEvent]:
        """Every event of a job in finalised blocks, in order; none when nobody posted it.

        Raises
        ------
        MissingEventError
            If the endpoint leaves one out.
        """
        first = self.progress(job_id).posted_in
        if first == 0:
            return []
        length, head = self.series_head("JobLedger", job_id)
        last = self.finalised().number
        logs = self.endpoint.logs(
            [self.network.contracts["JobLedger"]], first, last, subject=job_id, limit=length
        )
        events = self._decoded(logs)
        check_series(events, final_head=head)
        return events

    def _decoded(self, logs: list[dict[str, Any]]) -> list[LedgerEvent]:
        with well_formed(self.endpoint.url):
            missing = sorted({log["blockNumber"] for log in logs if "blockTimestamp" not in log})
            blocks = self.endpoint.batch([("eth_getBlockByNumber", (number, False)) for number in missing])
            times = {block["number"]: block["timestamp"] for block in blocks}
            return [self._event(log, log.get("blockTimestamp") or times[log["blockNumber"]]) for log in logs]

    def events_of(self, receipt: Receipt) -> list[LedgerEvent]:
        """Decoded events of one transaction."""
        time = hex(self.endpoint.block(receipt.block_number).timestamp)
        with well_formed(self.endpoint.url):
            known = [log for log in receipt.logs if log["address"].lower() in self._emitters]
            return [self._event(log, time) for log in known]

    def event_of(self, receipt: Receipt, name: str) -> LedgerEvent:
        """The one event of a transaction with this name.

        Raises
        ------
        LedgerError
            If the transaction emitted none.
        """
        for event in self.events_of(receipt):
            if event.name == name:
                return event
        raise LedgerError(f"transaction 0x{receipt.transaction_hash.hex()} emitted no {name}")

    def finalised(self) -> Head:
        """The newest finalised block."""
        return self.endpoint.finalised()

    def health(self) -> ChainHealth:
        """Whether the chain moves and which endpoints are fit, from what this process has seen; asks nobody."""
        return self.endpoint.health()

    def participant(self, org: OrgId) -> Participant:
        """A member's record; status NONE when unknown."""
        return self._record(Participant, "ParticipantRegistry", "participant", org)

    def participants(self) -> list[Participant]:
        """Every organisation ever admitted."""
        (ids,) = self.read("ParticipantRegistry", "organisations")
        return [self.participant(OrgId(org)) for org in ids]

    def organisation_of(self, address: str) -> OrgId:
        """Organisation of an account; 32 zero bytes when none."""
        return OrgId(self.read("ParticipantRegistry", "organisationOf", address)[0])

    def key_domain(self, key_id: KeyId) -> KeyDomain:
        """A key domain; status NONE when unknown."""
        return self._record(KeyDomain, "KeyRegistry", "keyDomain", key_id)

    def artifact(self, artifact_id: ArtifactId) -> Artifact:
        """An artifact; kind NONE when unknown."""
        return self._record(Artifact, "LineageRegistry", "artifact", artifact_id)

    def consent_epoch(self, steward: OrgId, scope: bytes) -> ConsentEpoch:
        """The consent epoch in force; epoch 0 when none was anchored."""
        return self._record(ConsentEpoch, "ConsentRegistry", "currentEpoch", steward, scope)

    def grant(self, grant_id: GrantId) -> UsageGrant:
        """A grant; status NONE when unknown, terms empty until granted."""
        return self._record(UsageGrant, "UsageRights", "grant", grant_id)

    def grant_standing(self, grant_id: GrantId) -> Refusal:
        """Why a grant does not stand; NONE when it does."""
        return Refusal(self.read("UsageRights", "standing", grant_id)[0])

    def budget(self, artifact_id: ArtifactId) -> BudgetAccount:
        """Privacy account of a bundle."""
        return self._record(BudgetAccount, "PrivacyBudget", "account", artifact_id)

    def job(self, job_id: JobId) -> Job:
        """A job, as its events tell it; state NONE when unknown."""
        events = self.job_events(job_id)
        if not events:
            return NO_JOB
        return job_of(events, self.artifact(request_of(events[0]).artifact_id).key_id)

    def progress(self, job_id: JobId) -> JobProgress:
        """Where a job stands; state NONE when unknown."""
        return self._record(JobProgress, "JobLedger", "progress", job_id)

    def series_head(self, contract: str, key: bytes) -> tuple[int, bytes]:
        """Number of events in a series, and its rolling hash; `key` as in `usufruct.ledger.series.series_of`."""
        words = [key[i : i + 32] for i in range(0, len(key), 32)]
        length, head = self.read(contract, "seriesHead", *words)
        return int(length), bytes(head)

    def timings(self) -> Timings:
        """Seconds that each job state may last."""
        return self._record(Timings, "JobLedger", "timings")

    def _record(self, record: type[Record], contract: str, function: str, *arguments: object) -> Record:
        try:
            (values,) = self.read(contract, function, *arguments)
        except TransactionRevertedError as exc:
            if exc.name.endswith("Unknown"):
                raise LedgerError(f"{contract} knows no such record: {exc}") from exc
            raise
        return from_abi(record, values)

    def _event(self, log: dict[str, Any], timestamp: str) -> LedgerEvent:
        contract, codecs = self._emitters[log["address"].lower()]
        first, *topics = log["topics"]
        codec = codecs.get(_hash(first))
        if codec is None:
            raise WrongContractCodeError(f"{contract} emitted an event that this package does not know")
        words = bytes.fromhex("".join([*topics, log["data"]]).replace("0x", ""))
        return LedgerEvent(
            contract=contract,
            name=codec.name,
            args=codec.decode(words),
            block_number=_number(log["blockNumber"]),
            block_hash=_hash(log["blockHash"]),
            transaction_hash=_hash(log["transactionHash"]),
            log_index=_number(log["logIndex"]),
            timestamp=_number(timestamp),
            words=words,
        )

    def _require_sender(self) -> Sender:
        if self._sender is None:
            raise ConfigurationError("this ledger was opened for reading only")
        return self._sender


def _hash(text: str) -> bytes:
    """A hash from its hex digits.

    Raises
    ------
    ValueError
        If it is no hash: what an endpoint answers is kept only when its length is bounded.
    """
    if len(text) != _HASH_CHARACTERS:
        raise ValueError(f"{text[:20]} is no hash")
    return _kept_hash(text)


def _number(text: str) -> int:
    """A number from its hex digits; what it raises is as in `_hash`."""
    if len(text) > _NUMBER_CHARACTERS:
        raise ValueError(f"{text[:20]} has too many digits")
    return _kept_number(text)


@lru_cache(maxsize=1024)
def _kept_hash(text: str) -> bytes:
    """Logs of one block, of one transaction and of one kind repeat it."""
    return bytes.fromhex(text[2:])


@lru_cache(maxsize=1024)
def _kept_number(text: str) -> int:
    """Logs of one block repeat it, and so do those at the same place of their blocks."""
    return natural(text)
