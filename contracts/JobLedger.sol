// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {OrgId, ArtifactId, KeyId, JobId, Refusal, Level} from "./Ids.sol";
import {EventSeries} from "./EventSeries.sol";
import {
    IParticipantRegistry,
    ROLE_CUSTODIAN,
    ROLE_PARTNER,
    ROLE_COMPUTE,
    ROLE_VERIFIER
} from "./IParticipantRegistry.sol";
import {IKeyRegistry} from "./IKeyRegistry.sol";
import {ILineageRegistry} from "./ILineageRegistry.sol";
import {IConsentRegistry} from "./IConsentRegistry.sol";
import {IUsageRights} from "./IUsageRights.sol";
import {IPrivacyBudget} from "./IPrivacyBudget.sol";
import {IJobLedger} from "./IJobLedger.sol";

/// @title JobLedger
/// @notice Jobs, the commitments of their verifiers, and how many of these dissent on which digest.
contract JobLedger is IJobLedger, AccessManaged {
    using EventSeries for EventSeries.Series;

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
        uint64 deadline;
        OrgId requester;
        OrgId executor;
        KeyId keyId;
        bytes32 resultDigest;
        bytes32 releaseDigest;
        JobRequest request;
        EventSeries.Series series;
    }

    /// @dev Stands where the commitment stood once it was opened.
    bytes32 private constant REVEALED = bytes32(type(uint256).max);

    IParticipantRegistry private immutable PARTICIPANTS;
    IKeyRegistry private immutable KEYS;
    ILineageRegistry private immutable LINEAGE;
    IConsentRegistry private immutable CONSENTS;
    IUsageRights private immutable RIGHTS;
    IPrivacyBudget private immutable BUDGETS;

    /// @inheritdoc IJobLedger
    uint8 public quorum;

    Timings private _timings;
    mapping(JobId jobId => Record) private _jobs;
    mapping(JobId jobId => mapping(OrgId verifier => bytes32)) private _commitments;
    mapping(JobId jobId => mapping(bytes32 resultDigest => uint8)) private _dissenters;

    constructor(
        address authority,
        IParticipantRegistry participants,
        IKeyRegistry keys,
        ILineageRegistry lineage,
        IConsentRegistry consents,
        IUsageRights rights,
        IPrivacyBudget budgets,
        Timings memory timings_,
        uint8 quorum_
    ) AccessManaged(authority) {
        PARTICIPANTS = participants;
        KEYS = keys;
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
        jobId = jobIdOf(requester, request.nonce);
        Record storage record = _jobs[jobId];
        if (record.state != JobState.None) revert JobLedgerDuplicate(jobId);

        record.request = request;
        record.requester = requester;
        ILineageRegistry.Artifact memory artifact = LINEAGE.artifact(request.artifactId);
        record.keyId = artifact.keyId;
        (Refusal refusal, uint8 replicas) = _admission(request, requester, artifact);
        if (refusal == Refusal.None) _admit(jobId, record, replicas);
        else _deny(jobId, record, refusal);
    }

    /// @inheritdoc IJobLedger
    function claimJob(JobId jobId) external {
        OrgId executor = PARTICIPANTS.requireNode(msg.sender, ROLE_COMPUTE);
        Record storage record = _requireState(jobId, JobState.Posted);
        _requireInTime(jobId, record);
        if (executor == record.requester) revert JobLedgerNotEligible(jobId, executor);

        record.executor = executor;
        uint64 deadline = _enter(record, JobState.Claimed, _timings.compute);
        (uint64 sequence, bytes32 head) = record.series.advance(
            JobClaimed.selector,
            abi.encode(jobId, executor, deadline)
        );
        emit JobClaimed(jobId, executor, deadline, sequence, head);
    }

    /// @inheritdoc IJobLedger
    function commitResult(JobId jobId, bytes32 resultDigest) external {
        OrgId executor = PARTICIPANTS.requireNode(msg.sender, ROLE_COMPUTE);
        Record storage record = _requireState(jobId, JobState.Claimed);
        if (executor != record.executor) revert JobLedgerNotExecutor(jobId, executor);
        _requireInTime(jobId, record);
        if (resultDigest == 0) revert JobLedgerInvalidParameters();

        uint256 eligible = _activeBeside(ROLE_VERIFIER, record.requester);
        if (PARTICIPANTS.hasRole(executor, ROLE_VERIFIER)) --eligible;
        uint8 asked = eligible < type(uint8).max ? uint8(eligible) : type(uint8).max;
        record.resultDigest = resultDigest;
        record.asked = asked;
        uint64 deadline = _enter(record, JobState.Committed, _timings.commit);
        (uint64 sequence, bytes32 head) = record.series.advance(
            ResultCommitted.selector,
            abi.encode(jobId, resultDigest, asked, deadline)
        );
        emit ResultCommitted(jobId, resultDigest, asked, deadline, sequence, head);
    }

    /// @inheritdoc IJobLedger
    function commitVerdict(JobId jobId, bytes32 commitment) external {
        OrgId verifier = PARTICIPANTS.requireNode(msg.sender, ROLE_VERIFIER);
        Record storage record = _requireState(jobId, JobState.Committed);
        _requireInTime(jobId, record);
        if (verifier == record.executor || verifier == record.requester) {
            revert JobLedgerNotEligible(jobId, verifier);
        }
        if (_commitments[jobId][verifier] != 0) revert JobLedgerAlreadyCommitted(jobId, verifier);
        if (commitment == 0 || commitment == REVEALED) revert JobLedgerCommitmentMismatch(jobId, verifier);

        _commitments[jobId][verifier] = commitment;
        ++record.commits;
        (uint64 sequence, bytes32 head) = record.series.advance(
            VerdictCommitted.selector,
            abi.encode(jobId, verifier, commitment)
        );
        emit VerdictCommitted(jobId, verifier, commitment, sequence, head);
        if (record.commits == record.asked) _closeCommits(jobId, record);
    }

    /// @inheritdoc IJobLedger
    function closeCommits(JobId jobId) external {
        PARTICIPANTS.requireMember(msg.sender);
        Record storage record = _requireState(jobId, JobState.Committed);
        _requireLate(jobId, record);

        _closeCommits(jobId, record);
    }

    /// @inheritdoc IJobLedger
    function revealVerdict(JobId jobId, bytes32 resultDigest, bytes32 possession, bytes32 salt) external {
        OrgId verifier = PARTICIPANTS.requireNode(msg.sender, ROLE_VERIFIER);
        Record storage record = _requireState(jobId, JobState.Revealing);
        _requireInTime(jobId, record);
        bytes32 commitment = _commitments[jobId][verifier];
        if (commitment == REVEALED) revert JobLedgerAlreadyRevealed(jobId, verifier);
        bytes32 opened = keccak256(
            abi.encode(block.chainid, address(this), jobId, verifier, resultDigest, possession, salt)
        );
        if (commitment != opened) revert JobLedgerCommitmentMismatch(jobId, verifier);

        _commitments[jobId][verifier] = REVEALED;
        bool agrees = _count(jobId, record, resultDigest);
        (uint64 sequence, bytes32 head) = record.series.advance(
            VerdictRevealed.selector,
            abi.encode(jobId, verifier, resultDigest, possession, agrees)
        );
        emit VerdictRevealed(jobId, verifier, resultDigest, possession, agrees, sequence, head);
        if (record.agreeing + record.dissenting == record.commits) _conclude(jobId, record);
    }

    /// @inheritdoc IJobLedger
    function closeReveals(JobId jobId) external {
        PARTICIPANTS.requireMember(msg.sender);
        Record storage record = _requireState(jobId, JobState.Revealing);
        _requireLate(jobId, record);

        _conclude(jobId, record);
    }

    /// @inheritdoc IJobLedger
    function settleDispute(JobId jobId, bool upheld) external restricted {
        Record storage record = _requireState(jobId, JobState.Disputed);
        _requireInTime(jobId, record);

        if (!upheld) _end(jobId, record, JobState.Refuted, Refusal.None);
        else if (record.agreeing < record.replicas) _end(jobId, record, JobState.Expired, Refusal.None);
        else _verify(jobId, record);
    }

    /// @inheritdoc IJobLedger
    function expireJob(JobId jobId) external {
        PARTICIPANTS.requireMember(msg.sender);
        Record storage record = _requireKnown(jobId);
        JobState state = record.state;
        bool stallable = state == JobState.Posted ||
            state == JobState.Claimed ||
            state == JobState.Disputed ||
            state == JobState.Verified ||
            state == JobState.Opened;
        if (!stallable) revert JobLedgerWrongState(jobId, state);
        _requireLate(jobId, record);

        bool disputed = state == JobState.Disputed;
        _end(jobId, record, disputed ? JobState.Refuted : JobState.Expired, Refusal.None);
    }

    /// @inheritdoc IJobLedger
    function openRelease(JobId jobId) external {
        (Record storage record, OrgId custodian) = _requireCustodian(jobId, JobState.Verified);
        Refusal refusal = _releaseRefusal(jobId, record);
        if (refusal != Refusal.None) {
            bool stale = refusal == Refusal.ConsentEpochStale;
            _end(jobId, record, stale ? JobState.StaleConsent : JobState.Refused, refusal);
            return;
        }

        uint64 deadline = _enter(record, JobState.Opened, _timings.release);
        (uint64 sequence, bytes32 head) = record.series.advance(
            ReleaseOpened.selector,
            abi.encode(jobId, custodian, deadline)
        );
        emit ReleaseOpened(jobId, custodian, deadline, sequence, head);
        BUDGETS.settle(jobId);
    }

    /// @inheritdoc IJobLedger
    function refuseRelease(JobId jobId, Refusal reason) external {
        (Record storage record, ) = _requireCustodian(jobId, JobState.Verified);
        if (reason == Refusal.None) revert JobLedgerInvalidParameters();

        _end(jobId, record, JobState.Refused, reason);
    }

    /// @inheritdoc IJobLedger
    function recordRelease(JobId jobId, bytes32 releaseDigest, uint64 sigmaMicro) external {
        (Record storage record, OrgId custodian) = _requireCustodian(jobId, JobState.Opened);
        if (releaseDigest == 0 || sigmaMicro == 0) revert JobLedgerInvalidParameters();

        record.releaseDigest = releaseDigest;
        _enter(record, JobState.Released, 0);
        uint64 rhoMicro = record.request.rhoMicro;
        (uint64 sequence, bytes32 head) = record.series.advance(
            JobReleased.selector,
            abi.encode(jobId, custodian, releaseDigest, sigmaMicro, rhoMicro)
        );
        emit JobReleased(jobId, custodian, releaseDigest, sigmaMicro, rhoMicro, sequence, head);
        ArtifactId result = LINEAGE.derivedIdOf(jobId, ILineageRegistry.ArtifactKind.Result);
        _recordDerived(ILineageRegistry.ArtifactKind.Release, jobId, record, custodian, releaseDigest, result);
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
    function job(JobId jobId) external view returns (Job memory) {
        Record storage record = _jobs[jobId];
        return
            Job({
                state: record.state,
                requester: record.requester,
                executor: record.executor,
                keyId: record.keyId,
                deadline: record.deadline,
                replicas: record.replicas,
                asked: record.asked,
                commits: record.commits,
                agreeing: record.agreeing,
                dissenting: record.dissenting,
                refusal: record.refusal,
                resultDigest: record.resultDigest,
                releaseDigest: record.releaseDigest,
                request: record.request
            });
    }

    /// @inheritdoc IJobLedger
    function seriesHead(JobId jobId) external view returns (uint64 length, bytes32 head) {
        return _jobs[jobId].series.end();
    }

    /// @inheritdoc IJobLedger
    function timings() external view returns (Timings memory) {
        return _timings;
    }

    /// @inheritdoc IJobLedger
    function jobIdOf(OrgId requester, uint64 nonce) public view returns (JobId) {
        return JobId.wrap(keccak256(abi.encode(block.chainid, address(this), requester, nonce)));
    }

    function _admit(JobId jobId, Record storage record, uint8 replicas) private {
        JobRequest memory request = record.request;
        record.replicas = replicas;
        uint64 deadline = _enter(record, JobState.Posted, _timings.claim);
        (uint64 sequence, bytes32 head) = record.series.advance(
            JobPosted.selector,
            abi.encode(jobId, record.requester, request.artifactId, request, record.keyId, replicas, deadline)
        );
        emit JobPosted(
            jobId,
            record.requester,
            request.artifactId,
            request,
            record.keyId,
            replicas,
            deadline,
            sequence,
            head
        );
        RIGHTS.consumeUse(request.grantId);
        BUDGETS.reserve(jobId, request.artifactId, request.grantId, request.rhoMicro);
    }

    function _deny(JobId jobId, Record storage record, Refusal refusal) private {
        JobRequest memory request = record.request;
        record.refusal = refusal;
        _enter(record, JobState.Denied, 0);
        (uint64 sequence, bytes32 head) = record.series.advance(
            JobDenied.selector,
            abi.encode(jobId, record.requester, request.artifactId, request, refusal)
        );
        emit JobDenied(jobId, record.requester, request.artifactId, request, refusal, sequence, head);
    }

    function _closeCommits(JobId jobId, Record storage record) private {
        uint8 commits = record.commits;
        if (commits < record.replicas) {
            _end(jobId, record, JobState.Expired, Refusal.None);
            return;
        }
        uint64 deadline = _enter(record, JobState.Revealing, _timings.reveal);
        (uint64 sequence, bytes32 head) = record.series.advance(
            CommitsClosed.selector,
            abi.encode(jobId, commits, deadline)
        );
        emit CommitsClosed(jobId, commits, deadline, sequence, head);
    }

    function _count(JobId jobId, Record storage record, bytes32 resultDigest) private returns (bool agrees) {
        agrees = resultDigest == record.resultDigest;
        if (agrees) {
            ++record.agreeing;
        } else {
            ++record.dissenting;
            uint8 united = ++_dissenters[jobId][resultDigest];
            if (united > record.united) record.united = united;
        }
    }

    function _conclude(JobId jobId, Record storage record) private {
        bool enough = record.agreeing >= record.replicas;
        if (record.dissenting == 0) {
            if (enough) _verify(jobId, record);
            else _end(jobId, record, JobState.Expired, Refusal.None);
        } else if (!enough && record.united >= record.replicas) {
            _end(jobId, record, JobState.Refuted, Refusal.None);
        } else {
            _dispute(jobId, record);
        }
    }

    function _dispute(JobId jobId, Record storage record) private {
        uint64 deadline = _enter(record, JobState.Disputed, _timings.dispute);
        (uint64 sequence, bytes32 head) = record.series.advance(JobDisputed.selector, abi.encode(jobId, deadline));
        emit JobDisputed(jobId, deadline, sequence, head);
    }

    function _verify(JobId jobId, Record storage record) private {
        bytes32 resultDigest = record.resultDigest;
        uint8 agreeing = record.agreeing;
        uint8 asked = record.asked;
        uint64 deadline = _enter(record, JobState.Verified, _timings.release);
        (uint64 sequence, bytes32 head) = record.series.advance(
            JobVerified.selector,
            abi.encode(jobId, resultDigest, Level.Replicated, agreeing, asked, deadline)
        );
        emit JobVerified(jobId, resultDigest, Level.Replicated, agreeing, asked, deadline, sequence, head);
        ArtifactId bundle = record.request.artifactId;
        _recordDerived(
            ILineageRegistry.ArtifactKind.Result,
            jobId,
            record,
            record.executor,
            resultDigest,
            bundle
        );
    }

    function _recordDerived(
        ILineageRegistry.ArtifactKind kind,
        JobId jobId,
        Record storage record,
        OrgId steward,
        bytes32 contentDigest,
        ArtifactId parent
    ) private {
        LINEAGE.recordDerived(kind, jobId, steward, record.keyId, contentDigest, parent);
    }

    /// @dev Only an announced decryption keeps the use and the reservation.
    function _end(JobId jobId, Record storage record, JobState state, Refusal reason) private {
        JobState from = record.state;
        record.refusal = reason;
        _enter(record, state, 0);
        (uint64 sequence, bytes32 head) = record.series.advance(
            JobEnded.selector,
            abi.encode(jobId, from, state, reason)
        );
        emit JobEnded(jobId, from, state, reason, sequence, head);
        if (from != JobState.Opened) {
            BUDGETS.refund(jobId);
            RIGHTS.restoreUse(record.request.grantId);
        }
    }

    /// @dev `duration` is 0 for final states, which have no deadline.
    function _enter(Record storage record, JobState state, uint32 duration) private returns (uint64 deadline) {
        deadline = duration == 0 ? 0 : uint64(block.timestamp) + duration;
        record.state = state;
        record.deadline = deadline;
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
        ILineageRegistry.Artifact memory artifact
    ) private view returns (Refusal refusal, uint8 replicas) {
        refusal = _bundleRefusal(request, artifact);
        if (refusal != Refusal.None) return (refusal, 0);
        refusal = RIGHTS.evaluate(
            request.grantId,
            requester,
            request.artifactId,
            request.purpose,
            request.kernelId,
            request.rowLevel
        );
        if (refusal != Refusal.None) return (refusal, 0);
        IUsageRights.GrantTerms memory terms = RIGHTS.grant(request.grantId).terms;
        refusal = _consentRefusal(request, artifact, terms.minCohort);
        if (refusal != Refusal.None) return (refusal, 0);
        replicas = terms.replicas > quorum ? terms.replicas : quorum;
        bool staffed = _activeBeside(ROLE_VERIFIER, requester) >= replicas &&
            _activeBeside(ROLE_COMPUTE, requester) != 0;
        if (!staffed) return (Refusal.NotEnoughVerifiers, 0);
        if (!BUDGETS.affordable(request.artifactId, request.grantId, request.rhoMicro)) {
            return (Refusal.BudgetExceeded, 0);
        }
    }

    function _releaseRefusal(JobId jobId, Record storage record) private view returns (Refusal refusal) {
        JobRequest memory request = record.request;
        ILineageRegistry.Artifact memory artifact = LINEAGE.artifact(request.artifactId);
        if (!PARTICIPANTS.hasRole(record.requester, ROLE_PARTNER)) return Refusal.RequesterNotActive;
        refusal = _bundleRefusal(request, artifact);
        if (refusal != Refusal.None) return refusal;
        refusal = RIGHTS.standing(request.grantId);
        if (refusal != Refusal.None) return refusal;
        refusal = _consentRefusal(request, artifact, RIGHTS.grant(request.grantId).terms.minCohort);
        if (refusal != Refusal.None) return refusal;
        ArtifactId result = LINEAGE.derivedIdOf(jobId, ILineageRegistry.ArtifactKind.Result);
        bool frozen = LINEAGE.artifact(result).frozen != ILineageRegistry.FreezeState.None;
        return frozen ? Refusal.ArtifactFrozen : Refusal.None;
    }

    function _bundleRefusal(
        JobRequest memory request,
        ILineageRegistry.Artifact memory artifact
    ) private view returns (Refusal refusal) {
        refusal = LINEAGE.usability(request.artifactId);
        if (refusal == Refusal.None && artifact.policyVersion != request.policyVersion) {
            refusal = Refusal.PolicyVersionStale;
        }
    }

    function _consentRefusal(
        JobRequest memory request,
        ILineageRegistry.Artifact memory artifact,
        uint32 minCohort
    ) private view returns (Refusal) {
        IConsentRegistry.ConsentEpoch memory current = CONSENTS.currentEpoch(
            artifact.steward,
            artifact.consentScope
        );
        if (current.epoch == 0 || current.epoch != request.consentEpoch) return Refusal.ConsentEpochStale;
        return current.cohortFloor < minCohort ? Refusal.CohortTooSmall : Refusal.None;
    }

    function _activeBeside(uint16 role, OrgId requester) private view returns (uint256 count) {
        count = PARTICIPANTS.activeCountWithRole(role);
        if (PARTICIPANTS.hasRole(requester, role)) --count;
    }

    function _requireCustodian(
        JobId jobId,
        JobState state
    ) private view returns (Record storage record, OrgId custodian) {
        custodian = PARTICIPANTS.requireNode(msg.sender, ROLE_CUSTODIAN);
        record = _requireState(jobId, state);
        if (KEYS.keyDomain(record.keyId).custodian != custodian) revert JobLedgerNotCustodian(jobId, custodian);
        _requireInTime(jobId, record);
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
}
