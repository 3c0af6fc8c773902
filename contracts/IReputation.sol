// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId, JobId} from "./Ids.sol";

/// @title IReputation
/// @notice What members did wrong in jobs, proved from the jobs' own events, and suspension by a rule that is known beforehand.
/// @dev Jobs store nothing for this and cost no gas more: whoever reports shows the whole series of an ended job, which must
/// end in the head that the job ledger holds. The ledger draws the conclusions itself. Points fade with time; a member that
/// reaches the limit is suspended in the same transaction. Only the council reinstates. What members did wrong is one series of
/// events per member (see `EventSeries`).
interface IReputation {
    enum Fault {
        None,
        /// Its result was refuted: by a quorum of verifiers that agree on another one, or by the council.
        RefutedResult,
        /// It vouched for a result that was refuted, or for another than the one that was verified.
        WrongVerdict,
        /// It committed to what it found and did not say in time what that was.
        UnrevealedVerdict,
        /// It took a job and brought no result in time.
        LapsedClaim
    }

    /// @notice What a fault costs, when points fade, and when they are too many.
    struct Rule {
        /// Seconds in which one point fades.
        uint32 fadeSeconds;
        /// Points at which a member is suspended.
        uint16 limit;
        uint16 refutedResult;
        uint16 wrongVerdict;
        uint16 unrevealedVerdict;
        uint16 lapsedClaim;
    }

    /// @notice An event of a job's series, as `EventSeries` hashes it.
    struct SeriesEvent {
        bytes32 topic;
        bytes payload;
    }

    /// @notice `organisation` did wrong in a job; `points` are what it has now, faded ones left out.
    event FaultRecorded(
        OrgId indexed organisation,
        JobId indexed jobId,
        Fault fault,
        uint64 points,
        uint64 sequence,
        bytes32 head
    );
    /// @notice The council took all points from `organisation`.
    event FaultsForgiven(OrgId indexed organisation, uint64 sequence, bytes32 head);
    /// @notice What faults cost from here on.
    event RuleChanged(Rule rule);

    /// @notice The job's faults stand already.
    error ReputationAlreadyReported(JobId jobId);

    /// @notice The job has not ended.
    error ReputationNotEnded(JobId jobId);

    /// @notice What was shown is not the job's whole series.
    error ReputationSeriesMismatch(JobId jobId);

    /// @notice Nobody did wrong.
    error ReputationNoFault(JobId jobId);

    /// @notice The limit or the time in which points fade is zero.
    error ReputationInvalidRule();

    /// @notice Records what members did wrong in a job that has ended, once. Any active member may report, and need not be
    /// believed: `events` are all events of the job, from the first. A dispute that nobody settled blames nobody, since it does
    /// not say who was right. Members that were asked and never committed are not known to the ledger, and not blamed.
    function report(JobId jobId, SeriesEvent[] calldata events) external;

    /// @notice Council only: all points of a member are taken away, as when it is reinstated.
    function forgive(OrgId organisation) external;

    /// @notice Council only; limit and fading above zero. Points that stand already stay.
    function setRule(Rule calldata newRule) external;

    /// @notice Points of a member now.
    function pointsOf(OrgId organisation) external view returns (uint64);

    /// @notice Whether the faults of a job were recorded.
    function reported(JobId jobId) external view returns (bool);

    /// @notice Number of a member's events so far and rolling hash after the last; both 0 while there is none.
    function seriesHead(OrgId organisation) external view returns (uint64 length, bytes32 head);

    /// @notice The rule in force.
    function rule() external view returns (Rule memory);
}
