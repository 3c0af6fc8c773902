"""Several JSON-RPC endpoints of one chain behind the interface of one: the first that is fit is used until it fails.

Fit is an endpoint that serves the right chain, is not behind the others or behind what was already seen, and shows
the same final blocks. A transaction is handed over as the same bytes to whichever endpoint is in use, so that
changing endpoints neither loses nor doubles it. Signs nothing, waits for no receipt.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential_jitter,
)

from usufruct.errors import (
    AnswerTooLargeError,
    ConfigurationError,
    ContradictingEndpointError,
    LedgerError,
    LedgerUnreachableError,
    StaleLedgerError,
    WrongChainError,
)
from usufruct.ledger.endpoint import Endpoint, Head, head_of, is_response, natural, well_formed
from usufruct.ledger.health import ChainHealth, EndpointHealth
from usufruct.ledger.profile import ChainProfile

Arbiter = Callable[[Endpoint, Head], bool]
"""Whether this block can be proven final to an outsider; for endpoints that contradict each other, and one that is far ahead of
the others. It is given all of them and may ask their `members` only, since none may be in use."""

Census = Callable[[Endpoint], bool | None]
"""Whether the validator behind an endpoint reaches a quorum of the others; None if it does not say."""

_PROBE_SECONDS = 5.0
_SURVEY_SECONDS = 2 * _PROBE_SECONDS
"""For so long the answers of all are waited for when one is chosen."""

_LAG_BLOCKS = 3
"""Blocks that one endpoint may be behind or ahead of another without being refused: news takes time to travel."""

_CATCH_UP_INTERVALS = 2
"""Block intervals for which news that others have is waited for."""

_CATCH_UP_PAUSE_S = 0.05

_LEFT_SECONDS = 30.0
"""For so long an endpoint is not used whose answers were found out to be wrong."""

_REMEMBERED = 4_096
"""Final blocks whose hashes are kept, to hold against what endpoints show later."""


_PASSING = (LedgerUnreachableError, StaleLedgerError)
"""Troubles that an endpoint may get over."""


class _Member:
    """One endpoint and what is known of it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.head: Head | None = None
        """Newest final block that it showed."""
        self.trouble: LedgerError | None = None
        self.again_at = 0.0
        """Monotonic seconds before which it is not tried again."""
        self.admitted = False


class Endpoints(Endpoint):
    """Blocking, thread-safe access to a chain through several endpoints.

    Calls are repeated, on another endpoint where there is one, for `patience` seconds. What `finalised` once gave is
    never taken back: an endpoint that shows less is behind and one that shows otherwise contradicts; neither is used.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        profile: ChainProfile,
        chain_id: int,
        genesis_hash: str,
        patience: float = 30.0,
        arbiter: Arbiter | None = None,
        census: Census | None = None,
    ) -> None:
        if not urls:
            raise ConfigurationError("a network needs at least one RPC endpoint")
        super().__init__(urls[0], patience=patience, profile=profile)
        self._chain_id, self._genesis_hash = chain_id, genesis_hash
        self._arbiter, self._census = arbiter, census
        single = partial(Endpoint, patience=0.0, profile=profile, closed=self._closed)
        self._members = [_Member(single(url)) for url in dict.fromkeys(urls)]
        # One that hangs must not hold up the others; where there are none, there is nothing else to wait for.
        self._probes = {
            m.endpoint.url: single(m.endpoint.url, request_s=_PROBE_SECONDS)
            if len(self._members) > 1
            else m.endpoint
            for m in self._members
        }
        self._lock = threading.RLock()
        self._choosing = threading.Lock()
        self._current: _Member | None = None
        self._final: OrderedDict[int, bytes] = OrderedDict()
        self._newest: Head | None = None
        self._surveyed_at = -float("inf")
        self._survey_thread: threading.Thread | None = None

    def finalised(self) -> Head:
        """The newest finalised block; never older than one given before.

        Raises
        ------
        StaleLedgerError, ContradictingEndpointError, WrongChainError
            If no endpoint is fit, and this is why.
        LedgerUnreachableError
        """
        for attempt in self._attempts():
            with attempt:
                head = self._read_head(self._choose())
        self._survey_sometimes()
        self.watch.observed(head.number)
        return head

    def block(self, number: int) -> Head:
        """The block with this number; errors as in `finalised`, since final blocks do not change."""
        for attempt in self._attempts():
            with attempt:
                member = self._choose()
                head = super().block(number)
                known = self._final.get(number)
                if known is not None and known != head.hash:
                    self._contradicted(member, Head(number, known, 0), head)
        return head

    def members(self) -> list[Endpoint]:
        """The single endpoints that were not refused, the one in use first; each gives up soon."""
        lies = WrongChainError | ContradictingEndpointError
        fit = [member for member in self._members if not isinstance(member.trouble, lies)]
        fit.sort(key=lambda member: member is not self._current)
        return [self._probes[member.endpoint.url] for member in fit]

    def catch_up(self) -> bool:
        """Wait until every final block that another endpoint shows is final here, too; False when there is no other."""
        if len(self._members) == 1:
            return False
        self._survey(self._others_due(self._current))
        with self._lock:
            newest = max((m.head.number for m in self._members if m.trouble is None and m.head), default=0)
        deadline = time.monotonic() + _CATCH_UP_INTERVALS * self.profile.block_interval_s
        while self.finalised().number < newest and time.monotonic() < deadline:
            time.sleep(_CATCH_UP_PAUSE_S)
        return True

    def check_chain(self, chain_id: int, genesis_hash: str) -> None:
        """Find an endpoint that is fit; errors as in `finalised`."""
        if (chain_id, genesis_hash) != (self._chain_id, self._genesis_hash):
            raise WrongChainError(f"these endpoints are for chain {self._chain_id}, not {chain_id}")
        for attempt in self._attempts():
            with attempt:
                self._choose()

    def hold_final(self, head: Head) -> None:
        """Remember a block that was proven final: endpoints that show another at its height are refused from now on.

        Raises
        ------
        ContradictingEndpointError
            If the endpoint in use has shown another.
        """
        with self._lock:
            seen = self._final.get(head.number)
            if seen is not None and seen != head.hash:
                contradiction = _contradiction(self.url, head.number, seen, head.hash)
                self._drop(self._current, contradiction, wait_s=float("inf"))
                self._trust_anew(head)
                raise contradiction
            self._remember(head)

    def leave(self, trouble: LedgerError) -> None:
        """What was read through the endpoint in use was found out to be wrong: use another for a while, where there is one."""
        if self._others_due(self._current):
            self._drop(self._current, trouble, wait_s=_LEFT_SECONDS)

    def health(self) -> ChainHealth:
        """What this process has seen of the chain and of each endpoint; asks nobody."""
        with self._lock:
            endpoints = tuple(
                EndpointHealth(
                    url=member.endpoint.url,
                    in_use=member is self._current,
                    height=member.head.number if member.head else None,
                    trouble=str(member.trouble) if member.trouble else None,
                )
                for member in self._members
            )
        return ChainHealth(
            height=self.watch.height,
            stalled_since=self.watch.stalled_since(),
            waiting=self.watch.waiting,
            endpoints=endpoints,
        )

    # The two primitives of `Endpoint`, each on whichever endpoint is fit.

    def _post(self, method: str, params: Sequence[object]) -> object:
        member = self._choose()
        try:
            answer = member.endpoint._post(method, params)
        except LedgerUnreachableError as exc:
            self._drop(member, exc)
            raise
        except AnswerTooLargeError as exc:
            if method == "eth_getLogs":  # It may be asked for less.
                raise
            self._drop(member, exc)
            raise LedgerUnreachableError(str(exc)) from exc
        if not is_response(answer):
            broken = LedgerUnreachableError(
                f"{member.endpoint.url} answers {method} with no JSON-RPC response"
            )
            self._drop(member, broken)
            raise broken
        return answer

    def _post_batch(self, calls: Sequence[tuple[str, Sequence[object]]]) -> list[dict[str, Any]]:
        member = self._choose()
        try:
            return member.endpoint._post_batch(calls)
        except LedgerUnreachableError as exc:
            self._drop(member, exc)
            raise
        except LedgerError as exc:
            self._drop(member, exc)
            raise LedgerUnreachableError(str(exc)) from exc

    def _retrying(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception(self._may_pass),
            wait=wait_exponential_jitter(multiplier=0.05, max=1.0, jitter=0.1),
            stop=stop_after_delay(self._patience) | stop_when_event_set(self._closed),
            sleep=sleep_using_event(self._closed),
            reraise=True,
        )

    def _may_pass(self, error: BaseException) -> bool:
        """Whether another attempt may succeed: the endpoint may come back, or another one is left."""
        if isinstance(error, ContradictingEndpointError | WrongChainError):
            return any(m.trouble is None or isinstance(m.trouble, _PASSING) for m in self._members)
        return isinstance(error, _PASSING)

    # Choosing.

    def _choose(self) -> _Member:
        """The endpoint in use, or the first that is fit.

        Raises
        ------
        LedgerUnreachableError, StaleLedgerError, WrongChainError, ContradictingEndpointError
            Why none is: the reason of the first, unless others may yet come back.
        """
        current = self._current
        if current is not None:
            return current
        with self._choosing:
            if self._current is not None:
                return self._current
            now = time.monotonic()
            untried, seen = [member for member in self._members if member.again_at <= now], self._newest
            self._survey(untried)
            for member in self._abreast([m for m in self._members if m.trouble is None and m.admitted], seen):
                try:
                    self._read_head(member)
                except LedgerError:
                    continue
                with self._lock:
                    self._current, self.url, member.trouble = member, member.endpoint.url, None
                return member
            raise self._why_none()

    def _abreast(self, members: Sequence[_Member], seen: Head | None) -> list[_Member]:
        """Those of these that are not behind; drops the others, and those not in use that claim more than is believed."""
        showing = [(member, member.head) for member in members if member.head is not None]
        newest = self._believed([head for _, head in showing], seen)
        near = []
        for member, head in showing:
            if newest - head.number > _LAG_BLOCKS:
                behind = f"{member.endpoint.url} is at block {head.number}, another endpoint at {newest}"
                self._drop(member, StaleLedgerError(behind))
            elif head.number > newest and member is not self._current:
                self._drop(member, _too_far_ahead(member, head, newest))
            else:
                near.append(member)
        return near

    def _believed(self, heads: Sequence[Head], seen: Head | None) -> int:
        """The newest height that most of these heads bear out, or that is proven: anyone may claim a block.

        Where none can be proven, half of them are enough: of two, the newer counts. Those behind what was seen have no say. An
        arbiter that does not prove what most of them bear out either has too few of the validators to prove anything.
        """
        if not heads:
            return 0
        abreast = [head for head in heads if seen is None or seen.number - head.number <= _LAG_BLOCKS]
        newest_first = sorted(abreast or heads, key=lambda head: head.number, reverse=True)
        by_most, by_half = newest_first[len(newest_first) // 2], newest_first[(len(newest_first) - 1) // 2]
        for head in newest_first:
            if head.number <= by_most.number + _LAG_BLOCKS:
                return head.number
            if self._arbiter is None:
                break
            if self._arbiter(self, head):
                return head.number
            if not self._arbiter(self, by_most):
                break
        return next(head.number for head in newest_first if head.number <= by_half.number + _LAG_BLOCKS)

    def _why_none(self) -> LedgerError:
        troubles = [member.trouble for member in self._members if member.trouble is not None]
        passing = [t for t in troubles if isinstance(t, _PASSING)]
        for reason in (*passing, *troubles):
            return reason
        return LedgerUnreachableError(f"{self.url} does not answer")

    def _survey(self, members: Sequence[_Member]) -> None:
        """Ask each for its head, all at once; those that answer and serve this chain are admitted."""
        threads = [threading.Thread(target=self._probe, args=(member,), daemon=True) for member in members]
        for thread in threads:
            thread.start()
        ends_at = time.monotonic() + _SURVEY_SECONDS
        for member, thread in zip(members, threads, strict=True):
            thread.join(max(0.0, ends_at - time.monotonic()))
            if thread.is_alive():
                self._drop(member, LedgerUnreachableError(f"{member.endpoint.url} takes too long to answer"))

    def _probe(self, member: _Member) -> None:
        probe = self._probes[member.endpoint.url]
        try:
            if not member.admitted:
                probe.check_chain(self._chain_id, self._genesis_hash)
            head = probe.finalised()
        except WrongChainError as exc:
            self._drop(member, exc, wait_s=30.0)
        except LedgerError as exc:
            unreachable = exc if isinstance(exc, LedgerUnreachableError) else LedgerUnreachableError(str(exc))
            self._drop(member, unreachable)
        else:
            with self._lock:
                member.admitted, member.head = True, head
                if not isinstance(member.trouble, ContradictingEndpointError):
                    member.trouble = None

    def _survey_sometimes(self) -> None:
        """Look after the others in the background, so that it is known before it matters who is behind or down."""
        if len(self._members) == 1 and self.profile.empty_blocks:
            return
        with self._lock:
            now = time.monotonic()
            running = self._survey_thread is not None and self._survey_thread.is_alive()
            if running or now - self._surveyed_at < self.profile.block_interval_s:
                return
            self._surveyed_at = now
            self._survey_thread = threading.Thread(target=self._look_around, daemon=True)
            self._survey_thread.start()

    def _look_around(self) -> None:
        current, seen = self._current, self._newest
        others = self._others_due(current)
        self._survey(others)
        fit = [member for member in others if member.trouble is None]
        self._abreast(fit if current is None else [current, *fit], seen)
        if not self.profile.empty_blocks:
            if current is not None:
                self._look_into_pool(self._probes[current.endpoint.url])
            if self._census is not None:
                answers = [self._census(member) for member in self.members()]
                self.watch.quorum(True if True in answers else False if False in answers else None)

    def _others_due(self, than: _Member | None) -> list[_Member]:
        """Those but this one that may be asked by now."""
        now = time.monotonic()
        return [member for member in self._members if member is not than and member.again_at <= now]

    def _look_into_pool(self, probe: Endpoint) -> None:
        try:
            status = probe.call("txpool_status")
            with well_formed(probe.url):
                self.watch.pooled(natural(status["pending"]))
        except LedgerError:
            # Not every endpoint opens its pool; then only our own transactions show that a block is due.
            self.watch.pooled(0)

    # What is final stays final.

    def _read_head(self, member: _Member) -> Head:
        """The endpoint's newest final block, held against what was seen before; drops the endpoint when it does not fit."""
        seen = self._newest
        asked: list[tuple[str, Sequence[object]]] = [
            ("eth_getBlockByNumber", (self.profile.finality_tag, False))
        ]
        if seen is not None:
            asked.append(("eth_getBlockByNumber", (hex(seen.number), False)))
        endpoint = member.endpoint
        try:
            newest, *before = endpoint.batch(asked)
            with well_formed(endpoint.url):
                head = head_of(newest)
                rest = [head_of(block) for block in before if block is not None]
        except LedgerError as exc:
            unreachable = exc if isinstance(exc, LedgerUnreachableError) else LedgerUnreachableError(str(exc))
            self._drop(member, unreachable)
            raise unreachable from exc
        if seen is not None:
            if rest and rest[0].hash != seen.hash:
                self._contradicted(member, seen, rest[0])
            elif head.number < seen.number:
                behind = StaleLedgerError(
                    f"{endpoint.url} is at block {head.number}, block {seen.number} was already seen"
                )
                self._drop(member, behind)
                raise behind
        last = seen or member.head
        if last is not None and head.number - last.number > _LAG_BLOCKS:
            self._check_leap(member, head, seen)
        with self._lock:
            member.head = head
            known = self._final.get(head.number)
            if known is None:
                self._remember(head)
            if self._newest is None or head.number > self._newest.number:
                self._newest = head
        if known is not None and known != head.hash:
            self._contradicted(member, Head(head.number, known, 0), head)
        return head

    def _check_leap(self, member: _Member, head: Head, seen: Head | None) -> None:
        """Refuse a head far above the last one, unless it is to be believed by what the others show by now."""
        others = self._others_due(member)
        self._survey(others)
        shown = [other.head for other in others if other.trouble is None and other.head is not None]
        newest = self._believed([head, *shown], seen)
        if head.number > newest:
            trouble = _too_far_ahead(member, head, newest)
            self._drop(member, trouble)
            raise trouble

    def _contradicted(self, member: _Member, seen: Head, shown: Head) -> None:
        """Two endpoints differ about a final block: the one that is proven holds, else the one that came first."""
        if self._arbiter is not None and self._arbiter(self, shown):
            with self._lock:
                self._trust_anew(shown)
            return
        contradiction = _contradiction(member.endpoint.url, seen.number, shown.hash, seen.hash)
        self._drop(member, contradiction, wait_s=float("inf"))
        raise contradiction

    def _trust_anew(self, head: Head) -> None:
        """Forget what an endpoint showed that turned out to be wrong."""
        self._final.clear()
        self._remember(head)
        self._newest = head

    def _remember(self, head: Head) -> None:
        self._final[head.number] = head.hash
        while len(self._final) > _REMEMBERED:
            self._final.popitem(last=False)

    def _drop(self, member: _Member | None, trouble: LedgerError, *, wait_s: float | None = None) -> None:
        """Use another endpoint; try this one again after a while."""
        if member is None:
            return
        with self._lock:
            member.trouble = trouble
            pause = wait_s if wait_s is not None else min(0.5, self.profile.block_interval_s)
            member.again_at = time.monotonic() + (pause if len(self._members) > 1 else min(pause, 0.05))
            if member is self._current:
                self._current = None


def _too_far_ahead(member: _Member, head: Head, newest: int) -> StaleLedgerError:
    return StaleLedgerError(
        f"{member.endpoint.url} claims block {head.number}, which nothing bears out; the others are at {newest}"
    )


def _contradiction(url: str, number: int, shown: bytes, seen: bytes) -> ContradictingEndpointError:
    return ContradictingEndpointError(
        f"{url} shows block {number} as {shown.hex()[:16]}..., which is final as {seen.hex()[:16]}..."
    )
