// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {OrgId, JobId, ArtifactId, Refusal, Level} from "./Ids.sol";
import {EventSeries} from "./EventSeries.sol";
import {
    IParticipantRegistry,
    ROLE_CUSTODIAN,
    ROLE_PARTNER,
    ROLE_COMPUTE,
    ROLE_VERIFIER
} from "./IParticipantRegistry.sol";
import {ILineageRegistry} from "./ILineageRegistry.sol";
import {IConsentRegistry} from "./IConsentRegistry.sol";
import {IUsageRights} from "./IUsageRights.sol";
import {IPrivacyBudget} from "./IPrivacyBudget.sol";
import {IJobLedger} from "./IJobLedger.sol";

/// @title JobLedger
/// @notice Two slots per job; more only where verifiers commit in several batches, or dissent.
contract JobLedger is IJobLedger, AccessManaged, EIP712 {
    /// @dev One slot, but for `head`. Organisations by their number in the registry.
    struct Record {
        JobState state;
        Refusal refusal;
        uint8 replicas;
        uint8 asked;
        uint8 commits;
        uint8 agreeing;
        uint8 dissenting;
        /// Most dissenters on one digest.
        uint8 united;
        uint8 turns;
        uint16 requester;
        uint16 executor;
        uint16 custodian;
        /// Positions whose commitments were opened.
        uint32 revealed;
        uint16 length;
        uint40 deadline;
        uint40 postedIn;
        bytes32 head;
    }

    // solhint-disable-next-line gas-small-strings
    bytes32 private constant VERDICT_TYPE = keccak256("Verdict(bytes32 jobId,bytes32 commitment,uint64 deadline)");
    uint8 private constant MAX_ASKED = 32;
    uint8 private constant MAX_TURNS = 3;

    IParticipantRegistry private immutable PARTICIPANTS;
    ILineageRegistry private immutable LINEAGE;
    IConsentRegistry private immutable CONSENTS;
    IUsageRights private immutable RIGHTS;
    IPrivacyBudget private immutable BUDGETS;

    /// @inheritdoc IJobLedger
    uint8 public quorum;

    Timings private _timings;
    mapping(JobId jobId => Record) private _jobs;
    /// @dev Only of jobs whose verifiers committed in several batches: within one, ascending accounts bar repetition.
    mapping(JobId jobId => mapping(uint16 verifier => bool)) private _committed;
    mapping(JobId jobId => mapping(bytes32 resultDigest => uint8)) private _dissenters;

    constructor(
        address authority,
        IParticipantRegistry participants,
        ILineageRegistry lineage,
        IConsentRegistry consents,
        IUsageRights rights,
        IPrivacyBudget budgets,
        Timings memory timings_,
        uint8 quorum_
    ) AccessManaged(authority) EIP712("Usufruct", "1") {
        PARTICIPANTS = participants;
        LINEAGE = lineage;
        CONSENTS = consents;
        RIGHTS = rights;
        BUDGETS = budgets;
        _setTimings(timings_);
        _setQuorum(quorum_);
    }

    /// @inheritdoc IJobLedger
    function postJob(JobRequest calldata request) external returns (JobId jobId) {
        OrgId requester = PARTICIPANTS.requireAuthority(msg.sender, ROLE_PARTNER);
        if (request.parametersDigest == 0 || request.rhoMicro == 0) {
            revert JobLedgerInvalidRequest(request.parametersDigest);
        }
        jobId = jobIdOf(requester, request);
        Record storage record = _jobs[jobId];
        if (record.state != JobState.None) revert JobLedgerDuplicate(jobId);

        (uint16 number, uint256 computing, uint256 verifying) = PARTICIPANTS.beside(requester);
        (record.requester, record.postedIn) = (number, uint40(block.number));
        (Refusal refusal, uint8 replicas) = _admission(request, requester, computing, verifying);
        if (refusal == Refusal.None) _admit(jobId, record, requester, request, replicas, verifying);
        else _deny(jobId, record, requester, request, refusal);
    }

    /// @inheritdoc IJobLedger
    function claimJob(JobId jobId) external {
        (OrgId executor, uint16 number) = PARTICIPANTS.requireNode(msg.sender, ROLE_COMPUTE);
        Record storage record = _requireKnown(jobId);
        bool lapsed = record.state == JobState.Claimed &&
            record.turns < MAX_TURNS &&
            block.timestamp >= record.deadline;
        if (!lapsed) _requireInTime(jobId, _requireState(jobId, JobState.Posted));
        if (number == record.requester || number == record.executor) {
            revert JobLedgerNotEligible(jobId, executor);
        }
        // It would not be asked for a verdict on its own result: too few would be left to agree.
        if (record.asked == record.replicas && PARTICIPANTS.hasRole(executor, ROLE_VERIFIER)) {
            revert JobLedgerNotEligible(jobId, executor);
        }

        record.executor = number;
        ++record.turns;
        uint64 deadline = _enter(record, JobState.Claimed, _timings.compute);
        (uint64 sequence, bytes32 head) = _advance(
            record,
            JobClaimed.selector,
            abi.encode(jobId, executor, deadline)
        );
        emit JobClaimed(jobId, executor, deadline, sequence, head);
    }

    /// @inheritdoc IJobLedger
    function commitResult(JobId jobId, bytes32 resultDigest, SignedVerdict[] calldata verdicts) external {
        (OrgId executor, uint16 number) = PARTICIPANTS.requireNode(msg.sender, ROLE_COMPUTE);
        Record storage record = _requireState(jobId, JobState.Claimed);
        if (number != record.executor) revert JobLedgerNotExecutor(jobId, executor);
        _requireInTime(jobId, record);
        if (resultDigest == 0) revert JobLedgerInvalidParameters();

        uint8 asked = record.asked;
        if (PARTICIPANTS.hasRole(executor, ROLE_VERIFIER)) record.asked = --asked;
        uint64 deadline = _enter(record, JobState.Committed, _timings.commit);
        (uint64 sequence, bytes32 head) = _advance(
            record,
            ResultCommitted.selector,
            abi.encode(jobId, executor, resultDigest, asked, deadline)
        );
        emit ResultCommitted(jobId, executor, resultDigest, asked, deadline, sequence, head);
        if (verdicts.length != 0) _commit(jobId, record, verdicts);
    }

    /// @inheritdoc IJobLedger
    function commitVerdicts(JobId jobId, SignedVerdict[] calldata verdicts) external {
        PARTICIPANTS.requireMember(msg.sender);
        Record storage record = _requireState(jobId, JobState.Committed);
        _requireInTime(jobId, record);

        _commit(jobId, record, verdicts);
    }

    /// @inheritdoc IJobLedger
    function closeCommits(OrgId requester, JobRequest calldata request) external {
        PARTICIPANTS.requireMember(msg.sender);
        JobId jobId = jobIdOf(requester, request);
        Record storage record = _requireState(jobId, JobState.Committed);
        _requireLate(jobId, record);

        if (record.commits < record.replicas) _end(jobId, record, request, JobState.Expired, Refusal.None);
        else _closeCommits(jobId, record);
    }

    /// @inheritdoc IJobLedger
    function revealVerdicts(
        OrgId requester,
        JobRequest calldata request,
        Commitments calldata committed,
        Opening[] calldata openings
    ) external {
        PARTICIPANTS.requireMember(msg.sender);
        JobId jobId = jobIdOf(requester, request);
        Record storage record = _requireState(jobId, JobState.Revealing);
        _requireInTime(jobId, record);
        _requireHistory(jobId, record, committed);

        uint256 count = openings.length;
        for (uint256 i = 0; i < count; ++i) _reveal(jobId, record, committed, openings[i]);
        if (record.agreeing + record.dissenting == record.commits) _conclude(jobId, record, request);
    }

    /// @inheritdoc IJobLedger
    function closeReveals(OrgId requester, JobRequest calldata request) external {
        PARTICIPANTS.requireMember(msg.sender);
        JobId jobId = jobIdOf(requester, request);
        Record storage record = _requireState(jobId, JobState.Revealing);
        _requireLate(jobId, record);

        _conclude(jobId, record, request);
    }

    /// @inheritdoc IJobLedger
    function settleDispute(OrgId requester, JobRequest calldata request, bool upheld) external restricted {
        JobId jobId = jobIdOf(requester, request);
        Record storage record = _requireState(jobId, JobState.Disputed);
        _requireInTime(jobId, record);

        if (!upheld) _end(jobId, record, request, JobState.Refuted, Refusal.ResultInvalid);
        else if (record.agreeing >= record.replicas) _verify(jobId, record);
        else _end(jobId, record, request, JobState.Expired, Refusal.None);
    }

    /// @inheritdoc IJobLedger
    function expireJob(OrgId requester, JobRequest calldata request) external {
        PARTICIPANTS.requireMember(msg.sender);
        JobId jobId = jobIdOf(requester, request);
        Record storage record = _requireKnown(jobId);
        JobState state = record.state;
        bool stallable = state == JobState.Posted ||
            state == JobState.Claimed ||
            state == JobState.Disputed ||
            state == JobState.Verified ||
            state == JobState.Opened;
        if (!stallable) revert JobLedgerWrongState(jobId, state);
        _requireLate(jobId, record);
        if (state == JobState.Claimed && record.turns < MAX_TURNS) {
            uint64 takeover = uint64(record.deadline) + _timings.claim;
            if (block.timestamp < takeover) revert JobLedgerDeadlineNotPassed(jobId, takeover);
        }

        bool disputed = state == JobState.Disputed;
        _end(jobId, record, request, disputed ? JobState.Refuted : JobState.Expired, Refusal.None);
    }

    /// @inheritdoc IJobLedger
    function openRelease(OrgId requester, JobRequest calldata request) external {
        (OrgId custodian, uint16 number) = PARTICIPANTS.requireNode(msg.sender, ROLE_CUSTODIAN);
        JobId jobId = jobIdOf(requester, request);
        Record storage record = _requireState(jobId, JobState.Verified);
        Refusal refusal = _releaseRefusal(jobId, requester, request, custodian);
        _requireInTime(jobId, record);
        if (refusal != Refusal.None) {
            bool stale = refusal == Refusal.ConsentEpochStale;
            _end(jobId, record, request, stale ? JobState.StaleConsent : JobState.Refused, refusal);
            return;
        }

        record.custodian = number;
        uint64 deadline = _enter(record, JobState.Opened, _timings.release);
        (uint64 sequence, bytes32 head) = _advance(
            record,
            ReleaseOpened.selector,
            abi.encode(jobId, custodian, deadline)
        );
        emit ReleaseOpened(jobId, custodian, deadline, sequence, head);
        BUDGETS.settle(request.artifactId, request.rhoMicro);
    }

    /// @inheritdoc IJobLedger
    function refuseRelease(OrgId requester, JobRequest calldata request, Refusal reason) external {
        (OrgId custodian, ) = PARTICIPANTS.requireNode(msg.sender, ROLE_CUSTODIAN);
        JobId jobId = jobIdOf(requester, request);
        Record storage record = _requireState(jobId, JobState.Verified);
        if (LINEAGE.stewardOf(request.artifactId) != custodian) revert JobLedgerNotCustodian(jobId, custodian);
        _requireInTime(jobId, record);
        if (reason == Refusal.None) revert JobLedgerInvalidParameters();

        _end(jobId, record, request, JobState.Refused, reason);
    }

    /// @inheritdoc IJobLedger
    function recordRelease(JobId jobId, bytes32 releaseDigest, uint64 sigmaMicro) external {
        (OrgId custodian, uint16 number) = PARTICIPANTS.requireNode(msg.sender, ROLE_CUSTODIAN);
        Record storage record = _requireState(jobId, JobState.Opened);
        if (number != record.custodian) revert JobLedgerNotCustodian(jobId, custodian);
        _requireInTime(jobId, record);
        if (releaseDigest == 0 || sigmaMicro == 0) revert JobLedgerInvalidParameters();

        _enter(record, JobState.Released, 0);
        (uint64 sequence, bytes32 head) = _advance(
            record,
            JobReleased.selector,
            abi.encode(jobId, custodian, releaseDigest, sigmaMicro)
        );
        emit JobReleased(jobId, custodian, releaseDigest, sigmaMicro, sequence, head);
    }

    /// @inheritdoc IJobLedger
    function setTimings(Timings calldata newTimings) external restricted {
        _setTimings(newTimings);
    }

    /// @inheritdoc IJobLedger
    function setQuorum(uint8 replicas) external restricted {
        _setQuorum(replicas);
    }

    /// @inheritdoc IJobLedger
    function progress(JobId jobId) external view returns (Progress memory) {
        Record storage record = _jobs[jobId];
        return
            Progress({
                state: record.state,
                refusal: record.refusal,
                replicas: record.replicas,
                asked: record.asked,
                commits: record.commits,
                agreeing: record.agreeing,
                dissenting: record.dissenting,
                turns: record.turns,
                deadline: record.deadline,
                postedIn: record.postedIn
            });
    }

    /// @inheritdoc IJobLedger
    function seriesHead(JobId jobId) external view returns (uint64 length, bytes32 head) {
        Record storage record = _jobs[jobId];
        return (record.length, record.head);
    }

    /// @inheritdoc IJobLedger
    function timings() external view returns (Timings memory) {
        return _timings;
    }

    /// @inheritdoc IJobLedger
    function jobIdOf(OrgId requester, JobRequest calldata request) public view returns (JobId) {
        return JobId.wrap(keccak256(abi.encode(block.chainid, address(this), requester, request)));
    }

    function _admit(
        JobId jobId,
        Record storage record,
        OrgId requester,
        JobRequest calldata request,
        uint8 replicas,
        uint256 verifying
    ) private {
        uint8 asked = _asked(verifying);
        (record.replicas, record.asked) = (replicas, asked);
        uint64 deadline = _enter(record, JobState.Posted, _timings.claim);
        (uint64 sequence, bytes32 head) = _advance(
            record,
            JobPosted.selector,
            abi.encode(jobId, requester, request.artifactId, request, replicas, asked, deadline)
        );
        emit JobPosted(
            jobId,
            requester,
            request.artifactId,
            request,
            replicas,
            asked,
            deadline,
            sequence,
            head
        );
        RIGHTS.consumeUse(request.grantId, request.rhoMicro);
        BUDGETS.reserve(request.artifactId, request.rhoMicro);
    }

    function _deny(
        JobId jobId,
        Record storage record,
        OrgId requester,
        JobRequest calldata request,
        Refusal refusal
    ) private {
        record.refusal = refusal;
        _enter(record, JobState.Denied, 0);
        (uint64 sequence, bytes32 head) = _advance(
            record,
            JobDenied.selector,
            abi.encode(jobId, requester, request.artifactId, request, refusal)
        );
        emit JobDenied(jobId, requester, request.artifactId, request, refusal, sequence, head);
    }

    function _commit(JobId jobId, Record storage record, SignedVerdict[] calldata verdicts) private {
        uint256 count = verdicts.length;
        uint256 commits = record.commits + count;
        uint256 asked = record.asked;
        if (commits > asked) revert JobLedgerTooManyVerdicts(jobId, count);
        bool whole = count == asked;
        address last = address(0);
        for (uint256 i = 0; i < count; ++i) last = _commitOne(jobId, record, verdicts[i], last, whole);
        record.commits = uint8(commits);
        if (commits == asked && commits >= record.replicas) _closeCommits(jobId, record);
    }

    /// @dev Returns the signer, which must come after `last`. In a batch of all that are asked, that alone bars repetition.
    function _commitOne(
        JobId jobId,
        Record storage record,
        SignedVerdict calldata verdict,
        address last,
        bool whole
    ) private returns (address signer) {
        signer = _signerOf(jobId, verdict);
        (OrgId verifier, uint16 number) = PARTICIPANTS.requireNode(signer, ROLE_VERIFIER);
        bool repeated = signer <= last || (!whole && _committed[jobId][number]);
        if (repeated) revert JobLedgerAlreadyCommitted(jobId, verifier);
        if (number == record.executor || number == record.requester) revert JobLedgerNotEligible(jobId, verifier);

        if (!whole) _committed[jobId][number] = true;
        (uint64 sequence, bytes32 head) = _advance(
            record,
            VerdictCommitted.selector,
            abi.encode(jobId, verifier, verdict.commitment)
        );
        emit VerdictCommitted(jobId, verifier, verdict.commitment, sequence, head);
    }

    function _closeCommits(JobId jobId, Record storage record) private {
        uint8 commits = record.commits;
        uint64 deadline = _enter(record, JobState.Revealing, _timings.reveal);
        (uint64 sequence, bytes32 head) = _advance(
            record,
            CommitsClosed.selector,
            abi.encode(jobId, commits, deadline)
        );
        emit CommitsClosed(jobId, commits, deadline, sequence, head);
    }

    function _reveal(
        JobId jobId,
        Record storage record,
        Commitments calldata committed,
        Opening calldata opening
    ) private {
        // Nobody has this digest; in a report it stands for a verdict that was not revealed.
        if (opening.resultDigest == 0) revert JobLedgerInvalidParameters();
        OrgId verifier = committed.verifiers[opening.position];
        bytes32 opened = keccak256(
            abi.encode(
                block.chainid,
                address(this),
                jobId,
                verifier,
                opening.resultDigest,
                opening.possession,
                opening.salt
            )
        );
        if (committed.commitments[opening.position] != opened) revert JobLedgerCommitmentMismatch(jobId, verifier);
        uint32 bit = uint32(1) << opening.position;
        if (record.revealed & bit != 0) revert JobLedgerAlreadyRevealed(jobId, verifier);

        record.revealed |= bit;
        bool agrees = opening.resultDigest == committed.resultDigest;
        if (agrees) {
            ++record.agreeing;
        } else {
            ++record.dissenting;
            uint8 united = ++_dissenters[jobId][opening.resultDigest];
            if (united > record.united) record.united = united;
        }
        (uint64 sequence, bytes32 head) = _advance(
            record,
            VerdictRevealed.selector,
            abi.encode(jobId, verifier, opening.resultDigest, opening.possession, agrees)
        );
        emit VerdictRevealed(
            jobId,
            verifier,
            opening.resultDigest,
            opening.possession,
            agrees,
            sequence,
            head
        );
    }

    function _conclude(JobId jobId, Record storage record, JobRequest calldata request) private {
        bool enough = record.agreeing >= record.replicas;
        if (record.dissenting == 0) {
            if (enough) _verify(jobId, record);
            else _end(jobId, record, request, JobState.Expired, Refusal.None);
        } else if (!enough && record.united >= record.replicas) {
            _end(jobId, record, request, JobState.Refuted, Refusal.None);
        } else {
            _dispute(jobId, record);
        }
    }

    function _dispute(JobId jobId, Record storage record) private {
        uint64 deadline = _enter(record, JobState.Disputed, _timings.dispute);
        (uint64 sequence, bytes32 head) = _advance(record, JobDisputed.selector, abi.encode(jobId, deadline));
        emit JobDisputed(jobId, deadline, sequence, head);
    }

    function _verify(JobId jobId, Record storage record) private {
        (uint8 agreeing, uint8 asked) = (record.agreeing, record.asked);
        uint64 deadline = _enter(record, JobState.Verified, _timings.release);
        (uint64 sequence, bytes32 head) = _advance(
            record,
            JobVerified.selector,
            abi.encode(jobId, Level.Replicated, agreeing, asked, deadline)
        );
        emit JobVerified(jobId, Level.Replicated, agreeing, asked, deadline, sequence, head);
    }

    /// @dev Only an announced decryption keeps the use and the reservation.
    function _end(
        JobId jobId,
        Record storage record,
        JobRequest calldata request,
        JobState state,
        Refusal reason
    ) private {
        JobState from = record.state;
        record.refusal = reason;
        _enter(record, state, 0);
        (uint64 sequence, bytes32 head) = _advance(
            record,
            JobEnded.selector,
            abi.encode(jobId, from, state, reason)
        );
        emit JobEnded(jobId, from, state, reason, sequence, head);
        if (from != JobState.Opened) {
            BUDGETS.refund(request.artifactId, request.rhoMicro);
            RIGHTS.restoreUse(request.grantId, request.rhoMicro);
        }
    }

    /// @dev `duration` is 0 for final states, which have no deadline.
    function _enter(Record storage record, JobState state, uint32 duration) private returns (uint64 deadline) {
        deadline = duration == 0 ? 0 : uint64(block.timestamp) + duration;
        record.state = state;
        record.deadline = uint40(deadline);
    }

    function _advance(
        Record storage record,
        bytes32 topic,
        bytes memory payload
    ) private returns (uint64 sequence, bytes32 head) {
        sequence = ++record.length;
        head = EventSeries.link(record.head, sequence, topic, keccak256(payload));
        record.head = head;
    }

    function _setTimings(Timings memory newTimings) private {
        bool valid = newTimings.claim != 0 &&
            newTimings.compute != 0 &&
            newTimings.commit != 0 &&
            newTimings.reveal != 0 &&
            newTimings.dispute != 0 &&
            newTimings.release != 0;
        if (!valid) revert JobLedgerInvalidParameters();

        _timings = newTimings;
        emit TimingsChanged(newTimings);
    }

    function _setQuorum(uint8 replicas) private {
        if (replicas == 0) revert JobLedgerInvalidParameters();

        quorum = replicas;
        emit QuorumChanged(replicas);
    }

    function _admission(
        JobRequest calldata request,
        OrgId requester,
        uint256 computing,
        uint256 verifying
    ) private view returns (Refusal refusal, uint8 replicas) {
        OrgId steward;
        bytes32 scope;
        (refusal, steward, scope) = _bundleRefusal(request);
        if (refusal != Refusal.None) return (refusal, 0);
        IUsageRights.Limits memory limits;
        (refusal, limits) = RIGHTS.evaluate(
            request.grantId,
            requester,
            request.artifactId,
            request.purpose,
            request.kernelId,
            request.rowLevel
        );
        if (refusal != Refusal.None) return (refusal, 0);
        refusal = _consentRefusal(request, steward, scope, limits.minCohort);
        if (refusal != Refusal.None) return (refusal, 0);
        replicas = limits.replicas > quorum ? limits.replicas : quorum;
        if (_asked(verifying) < replicas || computing == 0) return (Refusal.NotEnoughVerifiers, 0);
        bool affordable = request.rhoMicro <= limits.rhoMicro &&
            request.rhoMicro <= BUDGETS.available(request.artifactId);
        if (!affordable) return (Refusal.BudgetExceeded, 0);
    }

    function _releaseRefusal(
        JobId jobId,
        OrgId requester,
        JobRequest calldata request,
        OrgId custodian
    ) private view returns (Refusal refusal) {
        OrgId steward;
        bytes32 scope;
        (refusal, steward, scope) = _bundleRefusal(request);
        if (steward != custodian) revert JobLedgerNotCustodian(jobId, custodian);
        if (!PARTICIPANTS.hasRole(requester, ROLE_PARTNER)) return Refusal.RequesterNotActive;
        if (refusal != Refusal.None) return refusal;
        uint32 minCohort;
        (refusal, minCohort) = RIGHTS.standing(request.grantId);
        if (refusal != Refusal.None) return refusal;
        refusal = _consentRefusal(request, steward, scope, minCohort);
        if (refusal != Refusal.None) return refusal;
        ArtifactId result = LINEAGE.derivedIdOf(jobId, ILineageRegistry.ArtifactKind.Result);
        return LINEAGE.isFrozen(result) ? Refusal.ArtifactFrozen : Refusal.None;
    }

    function _bundleRefusal(
        JobRequest calldata request
    ) private view returns (Refusal refusal, OrgId steward, bytes32 scope) {
        uint32 policyVersion;
        (refusal, steward, scope, policyVersion) = LINEAGE.bundle(request.artifactId);
        if (refusal == Refusal.None && policyVersion != request.policyVersion) {
            refusal = Refusal.PolicyVersionStale;
        }
    }

    function _consentRefusal(
        JobRequest calldata request,
        OrgId steward,
        bytes32 scope,
        uint32 minCohort
    ) private view returns (Refusal) {
        (uint64 epoch, uint32 cohortFloor) = CONSENTS.inForce(steward, scope);
        if (epoch == 0 || epoch != request.consentEpoch) return Refusal.ConsentEpochStale;
        return cohortFloor < minCohort ? Refusal.CohortTooSmall : Refusal.None;
    }

    function _signerOf(JobId jobId, SignedVerdict calldata verdict) private view returns (address signer) {
        bytes32 message = keccak256(abi.encode(VERDICT_TYPE, jobId, verdict.commitment, verdict.deadline));
        signer = ECDSA.recover(_hashTypedDataV4(message), verdict.r, verdict.vs);
        if (block.timestamp >= verdict.deadline) revert JobLedgerSignatureExpired(signer, verdict.deadline);
    }

    /// @dev The series can only end in the stored head if it holds exactly these events.
    function _requireHistory(JobId jobId, Record storage record, Commitments calldata committed) private view {
        uint256 commits = record.commits;
        uint256 revealed = committed.revealed.length;
        bool fits = committed.verifiers.length == commits && committed.commitments.length == commits;
        fits = fits && revealed == record.agreeing + record.dissenting;
        if (!fits) revert JobLedgerHistoryMismatch(jobId);
        uint64 sequence = record.length - uint64(revealed) - uint64(commits) - 1;
        bytes32 head = EventSeries.link(
            committed.head,
            sequence,
            ResultCommitted.selector,
            keccak256(abi.encode(jobId, committed.executor, committed.resultDigest, record.asked, committed.deadline))
        );
        for (uint256 i = 0; i < commits; ++i) {
            bytes32 payload = keccak256(abi.encode(jobId, committed.verifiers[i], committed.commitments[i]));
            head = EventSeries.link(head, ++sequence, VerdictCommitted.selector, payload);
        }
        head = EventSeries.link(
            head,
            ++sequence,
            CommitsClosed.selector,
            keccak256(abi.encode(jobId, record.commits, uint64(record.deadline)))
        );
        for (uint256 i = 0; i < revealed; ++i) {
            head = EventSeries.link(head, ++sequence, VerdictRevealed.selector, committed.revealed[i]);
        }
        if (head != record.head) revert JobLedgerHistoryMismatch(jobId);
    }

    function _requireKnown(JobId jobId) private view returns (Record storage record) {
        record = _jobs[jobId];
        if (record.state == JobState.None) revert JobLedgerUnknown(jobId);
    }

    function _requireState(JobId jobId, JobState state) private view returns (Record storage record) {
        record = _requireKnown(jobId);
        if (record.state != state) revert JobLedgerWrongState(jobId, record.state);
    }

    function _requireInTime(JobId jobId, Record storage record) private view {
        if (block.timestamp >= record.deadline) revert JobLedgerDeadlinePassed(jobId, record.deadline);
    }

    function _requireLate(JobId jobId, Record storage record) private view {
        if (block.timestamp < record.deadline) revert JobLedgerDeadlineNotPassed(jobId, record.deadline);
    }

    /// @dev How many of the active verifiers besides the requester's are asked.
    function _asked(uint256 verifying) private pure returns (uint8) {
        return verifying < MAX_ASKED ? uint8(verifying) : MAX_ASKED;
    }
}
