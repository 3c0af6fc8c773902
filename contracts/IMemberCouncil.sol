// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId} from "./Ids.sol";

/// @title IMemberCouncil
/// @notice One member, one vote, over every governed call: admission, suspension, removal, parameters.
/// @dev The council is the only administrator of the AccessManager; a passed proposal is a call that the council makes.
interface IMemberCouncil {
    enum ProposalStatus {
        None,
        Open,
        Executed,
        Expired
    }

    /// @notice A vote was opened; it closes at `deadline` (Unix seconds).
    event ProposalMade(uint256 indexed proposalId, OrgId indexed proposer, address target, bytes data, uint64 deadline);
    /// @notice `voter` cast its one vote.
    event VoteCast(uint256 indexed proposalId, OrgId indexed voter, bool support);
    /// @notice The proposal passed and its call was made.
    event ProposalExecuted(uint256 indexed proposalId);
    /// @notice Later proposals stay open for `votingPeriod` seconds; every open one now needs `quorumBps`.
    event CouncilParametersChanged(uint64 votingPeriod, uint16 quorumBps);

    /// @notice No proposal has this number.
    error MemberCouncilUnknownProposal(uint256 proposalId);

    /// @notice The proposal was executed, or its deadline has passed.
    error MemberCouncilNotOpen(uint256 proposalId);

    /// @notice `voter` voted before; votes are final.
    error MemberCouncilAlreadyVoted(uint256 proposalId, OrgId voter);

    /// @notice `support` of the members active now vote for it, `needed` are required.
    error MemberCouncilQuorumNotReached(uint256 proposalId, uint256 support, uint256 needed);

    /// @notice Only a passed proposal may call this.
    error MemberCouncilOnlyItself(address caller);

    /// @notice The period is zero or above 365 days, or the quorum outside 5000 to 9999 basis points.
    error MemberCouncilInvalidParameters(uint64 votingPeriod, uint16 quorumBps);

    /// @notice The governed call failed with `reason`, or its target holds no code; the proposal stays open.
    error MemberCouncilCallFailed(uint256 proposalId, bytes reason);

    /// @notice Any active member's authority opens a vote on calling `target` with `data`; the proposer's own support counts at once.
    function propose(address target, bytes calldata data) external returns (uint256 proposalId);

    /// @notice Casts the one vote of the caller's organisation (authority); closed at and after the deadline.
    function vote(uint256 proposalId, bool support) external;

    /// @notice Any active member's authority has the call made, once support exceeds the quorum of members active now.
    /// @dev Votes of members that are no longer active do not count. needed = floor(active * quorumBps / 10000) + 1.
    function execute(uint256 proposalId) external;

    /// @notice Changes voting period (seconds, 1 to 365 days) and quorum (5000 to 9999 basis points); only by a vote.
    function setParameters(uint64 newVotingPeriod, uint16 newQuorumBps) external;

    /// @notice What became of a proposal; `None` when there is no such number.
    function proposalStatus(uint256 proposalId) external view returns (ProposalStatus);

    /// @notice Supporting votes of members active now, and how many are needed now.
    function tally(uint256 proposalId) external view returns (uint256 support, uint256 needed);

    /// @notice Number of proposals ever made; they are numbered from 1.
    function proposalCount() external view returns (uint256);
    /// @notice Seconds that a proposal stays open.
    function votingPeriod() external view returns (uint64);
    /// @notice Share of active members that support must exceed, in basis points.
    function quorumBps() external view returns (uint16);
}
