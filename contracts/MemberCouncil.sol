// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId} from "./Ids.sol";
import {IParticipantRegistry} from "./IParticipantRegistry.sol";
import {IMemberCouncil} from "./IMemberCouncil.sol";

/// @title MemberCouncil
/// @notice Proposals and votes; makes the calls that pass.
contract MemberCouncil is IMemberCouncil {
    struct Proposal {
        address target;
        uint64 deadline;
        bool executed;
        bytes data;
        /// Only support needs to be counted; the list is as long as there are members, at most.
        OrgId[] supporters;
        mapping(OrgId voter => bool) voted;
    }

    uint64 private constant MAX_VOTING_PERIOD = 365 days;
    uint16 private constant MIN_QUORUM_BPS = 5000;
    uint16 private constant MAX_QUORUM_BPS = 9999;
    uint256 private constant BPS = 10000;

    IParticipantRegistry private immutable PARTICIPANTS;

    /// @inheritdoc IMemberCouncil
    uint64 public votingPeriod;
    /// @inheritdoc IMemberCouncil
    uint16 public quorumBps;
    /// @inheritdoc IMemberCouncil
    uint256 public proposalCount;

    mapping(uint256 proposalId => Proposal) private _proposals;

    constructor(IParticipantRegistry participants, uint64 votingPeriod_, uint16 quorumBps_) {
        PARTICIPANTS = participants;
        _setParameters(votingPeriod_, quorumBps_);
    }

    /// @inheritdoc IMemberCouncil
    function propose(address target, bytes calldata data) external returns (uint256 proposalId) {
        OrgId proposer = PARTICIPANTS.requireAuthority(msg.sender, 0);

        proposalId = ++proposalCount;
        Proposal storage proposal = _proposals[proposalId];
        proposal.target = target;
        proposal.deadline = uint64(block.timestamp) + votingPeriod;
        proposal.data = data;
        emit ProposalMade(proposalId, proposer, target, data, proposal.deadline);
        _cast(proposalId, proposal, proposer, true);
    }

    /// @inheritdoc IMemberCouncil
    function vote(uint256 proposalId, bool support) external {
        OrgId voter = PARTICIPANTS.requireAuthority(msg.sender, 0);
        Proposal storage proposal = _requireOpen(proposalId);
        if (proposal.voted[voter]) revert MemberCouncilAlreadyVoted(proposalId, voter);

        _cast(proposalId, proposal, voter, support);
    }

    /// @inheritdoc IMemberCouncil
    function execute(uint256 proposalId) external {
        PARTICIPANTS.requireAuthority(msg.sender, 0);
        Proposal storage proposal = _requireOpen(proposalId);
        (uint256 support, uint256 needed) = tally(proposalId);
        if (support < needed) revert MemberCouncilQuorumNotReached(proposalId, support, needed);

        proposal.executed = true;
        emit ProposalExecuted(proposalId);
        address target = proposal.target;
        if (target.code.length == 0) revert MemberCouncilCallFailed(proposalId, "");
        // A passed proposal may call anything: this is the one call whose target the members choose.
        // slither-disable-next-line low-level-calls
        (bool done, bytes memory reason) = target.call(proposal.data); // solhint-disable-line avoid-low-level-calls
        if (!done) revert MemberCouncilCallFailed(proposalId, reason);
    }

    /// @inheritdoc IMemberCouncil
    function setParameters(uint64 newVotingPeriod, uint16 newQuorumBps) external {
        if (msg.sender != address(this)) revert MemberCouncilOnlyItself(msg.sender);

        _setParameters(newVotingPeriod, newQuorumBps);
    }

    /// @inheritdoc IMemberCouncil
    function proposalStatus(uint256 proposalId) public view returns (ProposalStatus) {
        Proposal storage proposal = _proposals[proposalId];
        if (proposal.deadline == 0) return ProposalStatus.None;
        if (proposal.executed) return ProposalStatus.Executed;
        return block.timestamp < proposal.deadline ? ProposalStatus.Open : ProposalStatus.Expired;
    }

    /// @inheritdoc IMemberCouncil
    function tally(uint256 proposalId) public view returns (uint256 support, uint256 needed) {
        OrgId[] storage supporters = _proposals[proposalId].supporters;
        uint256 votes = supporters.length;
        for (uint256 i = 0; i < votes; ++i) {
            if (PARTICIPANTS.isActive(supporters[i])) ++support;
        }
        needed = (PARTICIPANTS.activeCount() * quorumBps) / BPS + 1;
    }

    function _cast(uint256 proposalId, Proposal storage proposal, OrgId voter, bool support) private {
        proposal.voted[voter] = true;
        if (support) proposal.supporters.push(voter);
        emit VoteCast(proposalId, voter, support);
    }

    function _setParameters(uint64 newVotingPeriod, uint16 newQuorumBps) private {
        bool valid = newVotingPeriod != 0 &&
            newVotingPeriod <= MAX_VOTING_PERIOD &&
            newQuorumBps >= MIN_QUORUM_BPS &&
            newQuorumBps <= MAX_QUORUM_BPS;
        if (!valid) revert MemberCouncilInvalidParameters(newVotingPeriod, newQuorumBps);

        votingPeriod = newVotingPeriod;
        quorumBps = newQuorumBps;
        emit CouncilParametersChanged(newVotingPeriod, newQuorumBps);
    }

    function _requireOpen(uint256 proposalId) private view returns (Proposal storage) {
        ProposalStatus status = proposalStatus(proposalId);
        if (status == ProposalStatus.None) revert MemberCouncilUnknownProposal(proposalId);
        if (status != ProposalStatus.Open) revert MemberCouncilNotOpen(proposalId);
        return _proposals[proposalId];
    }
}
