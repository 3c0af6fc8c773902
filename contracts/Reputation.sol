// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {OrgId, JobId, Refusal} from "./Ids.sol";
import {EventSeries} from "./EventSeries.sol";
import {IJobLedger} from "./IJobLedger.sol";
import {IParticipantRegistry} from "./IParticipantRegistry.sol";
import {IReputation} from "./IReputation.sol";

/// @title Reputation
/// @notice Reads the series of ended jobs, and suspends who did wrong too often.
contract Reputation is IReputation, AccessManaged {
    using EventSeries for EventSeries.Series;

    IParticipantRegistry private immutable PARTICIPANTS;
    IJobLedger private immutable JOBS;

    struct Standing {
        uint64 points;
        /// Unix seconds from which the points fade.
        uint64 since;
    }

    /// @dev A job's series as far as it was read; `who` and `what` are the faults found.
    struct Reading {
        OrgId claimant;
        OrgId executor;
        bytes32 result;
        uint256 commits;
        OrgId[] verifiers;
        bytes32[] found;
        bool closed;
        bool verified;
        bool refuted;
        uint256 faults;
        OrgId[] who;
        Fault[] what;
    }

    Rule private _rule;
    mapping(OrgId organisation => Standing) private _standings;
    mapping(OrgId organisation => EventSeries.Series) private _series;
    mapping(JobId jobId => bool) private _reported;

    constructor(
        address authority,
        IParticipantRegistry participants,
        IJobLedger jobs,
        Rule memory rule_
    ) AccessManaged(authority) {
        PARTICIPANTS = participants;
        JOBS = jobs;
        _setRule(rule_);
    }

    /// @inheritdoc IReputation
    function report(JobId jobId, SeriesEvent[] calldata events) external {
        PARTICIPANTS.requireMember(msg.sender);
        if (_reported[jobId]) revert ReputationAlreadyReported(jobId);
        _requireWhole(jobId, events);
        if (JOBS.progress(jobId).deadline != 0) revert ReputationNotEnded(jobId);
        Reading memory reading = _read(events);
        if (reading.faults == 0) revert ReputationNoFault(jobId);

        _reported[jobId] = true;
        for (uint256 i = 0; i < reading.faults; ++i) _blame(reading.who[i], jobId, reading.what[i]);
    }

    /// @inheritdoc IReputation
    function forgive(OrgId organisation) external restricted {
        delete _standings[organisation];
        (uint64 sequence, bytes32 head) = _series[organisation].advance(
            FaultsForgiven.selector,
            abi.encode(organisation)
        );
        emit FaultsForgiven(organisation, sequence, head);
    }

    /// @inheritdoc IReputation
    function setRule(Rule calldata newRule) external restricted {
        _setRule(newRule);
    }

    /// @inheritdoc IReputation
    function pointsOf(OrgId organisation) external view returns (uint64) {
        return _faded(_standings[organisation]).points;
    }

    /// @inheritdoc IReputation
    function reported(JobId jobId) external view returns (bool) {
        return _reported[jobId];
    }

    /// @inheritdoc IReputation
    function seriesHead(OrgId organisation) external view returns (uint64 length, bytes32 head) {
        return _series[organisation].end();
    }

    /// @inheritdoc IReputation
    function rule() external view returns (Rule memory) {
        return _rule;
    }

    function _blame(OrgId organisation, JobId jobId, Fault fault) private {
        Standing memory standing = _faded(_standings[organisation]);
        standing.points += _cost(fault);
        _standings[organisation] = standing;
        (uint64 sequence, bytes32 head) = _series[organisation].advance(
            FaultRecorded.selector,
            abi.encode(organisation, jobId, fault, standing.points)
        );
        emit FaultRecorded(organisation, jobId, fault, standing.points, sequence, head);
        if (standing.points >= _rule.limit) PARTICIPANTS.suspend(organisation);
    }

    function _setRule(Rule memory newRule) private {
        if (newRule.limit == 0 || newRule.fadeSeconds == 0) revert ReputationInvalidRule();

        _rule = newRule;
        emit RuleChanged(newRule);
    }

    /// @dev The series can only end in the stored head if it holds exactly these events.
    function _requireWhole(JobId jobId, SeriesEvent[] calldata events) private view {
        (uint64 length, bytes32 stored) = JOBS.seriesHead(jobId);
        if (events.length == 0 || events.length != length) revert ReputationSeriesMismatch(jobId);
        bytes32 head = bytes32(0);
        for (uint64 i = 0; i < length; ++i) {
            head = EventSeries.link(head, i + 1, events[i].topic, keccak256(events[i].payload));
        }
        if (head != stored) revert ReputationSeriesMismatch(jobId);
    }

    function _faded(Standing storage kept) private view returns (Standing memory standing) {
        standing = kept;
        (uint64 now_, uint64 fadeSeconds) = (uint64(block.timestamp), _rule.fadeSeconds);
        uint64 passed = now_ - standing.since;
        uint64 gone = passed / fadeSeconds;
        bool all = gone >= standing.points;
        standing.points = all ? 0 : standing.points - gone;
        // The rest of a division of time, nothing that is to be unpredictable.
        // slither-disable-next-line weak-prng
        standing.since = all ? now_ : now_ - (passed % fadeSeconds);
    }

    function _cost(Fault fault) private view returns (uint16) {
        if (fault == Fault.RefutedResult) return _rule.refutedResult;
        if (fault == Fault.WrongVerdict) return _rule.wrongVerdict;
        return fault == Fault.UnrevealedVerdict ? _rule.unrevealedVerdict : _rule.lapsedClaim;
    }

    function _read(SeriesEvent[] calldata events) private pure returns (Reading memory reading) {
        uint256 length = events.length;
        (reading.verifiers, reading.found) = (new OrgId[](length), new bytes32[](length));
        (reading.who, reading.what) = (new OrgId[](length), new Fault[](length));
        for (uint256 i = 0; i < length; ++i) _take(reading, events[i].topic, events[i].payload);
        if (reading.refuted) _fault(reading, reading.executor, Fault.RefutedResult);
        if (!reading.closed) return reading;
        for (uint256 i = 0; i < reading.commits; ++i) {
            bytes32 found = reading.found[i];
            bool agrees = found == reading.result;
            if (found == bytes32(0)) _fault(reading, reading.verifiers[i], Fault.UnrevealedVerdict);
            else if (agrees ? reading.refuted : reading.verified) {
                _fault(reading, reading.verifiers[i], Fault.WrongVerdict);
            }
        }
    }

    function _take(Reading memory reading, bytes32 topic, bytes calldata payload) private pure {
        if (topic == IJobLedger.JobClaimed.selector) {
            if (reading.claimant != OrgId.wrap(0)) _fault(reading, reading.claimant, Fault.LapsedClaim);
            (, reading.claimant) = abi.decode(payload, (JobId, OrgId));
        } else if (topic == IJobLedger.ResultCommitted.selector) {
            (, reading.executor, reading.result) = abi.decode(payload, (JobId, OrgId, bytes32));
        } else if (topic == IJobLedger.VerdictCommitted.selector) {
            (, reading.verifiers[reading.commits]) = abi.decode(payload, (JobId, OrgId));
            ++reading.commits;
        } else if (topic == IJobLedger.CommitsClosed.selector) {
            reading.closed = true;
        } else if (topic == IJobLedger.VerdictRevealed.selector) {
            (, OrgId verifier, bytes32 found) = abi.decode(payload, (JobId, OrgId, bytes32));
            uint256 position = 0;
            while (reading.verifiers[position] != verifier) ++position;
            reading.found[position] = found;
        } else if (topic == IJobLedger.JobVerified.selector) {
            reading.verified = true;
        } else if (topic == IJobLedger.JobEnded.selector) {
            _conclude(reading, payload);
        }
    }

    function _conclude(Reading memory reading, bytes calldata payload) private pure {
        (, IJobLedger.JobState from, IJobLedger.JobState state, Refusal reason) = abi.decode(
            payload,
            (JobId, IJobLedger.JobState, IJobLedger.JobState, Refusal)
        );
        if (from == IJobLedger.JobState.Claimed) _fault(reading, reading.claimant, Fault.LapsedClaim);
        // A dispute that ran out is refuted, too, but nobody found out who was right.
        bool decided = from == IJobLedger.JobState.Revealing || reason == Refusal.ResultInvalid;
        reading.refuted = state == IJobLedger.JobState.Refuted && decided;
    }

    function _fault(Reading memory reading, OrgId organisation, Fault fault) private pure {
        (reading.who[reading.faults], reading.what[reading.faults]) = (organisation, fault);
        ++reading.faults;
    }
}
