// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId, GrantId, JobId, Refusal} from "../../contracts/Ids.sol";
import {IParticipantRegistry} from "../../contracts/IParticipantRegistry.sol";
import {IJobLedger} from "../../contracts/IJobLedger.sol";
import {IUsageRights} from "../../contracts/IUsageRights.sol";
import {IPrivacyBudget} from "../../contracts/IPrivacyBudget.sol";
import {Network} from "./Network.sol";

/// @dev Does what members, strangers and the council may try, in any order, and notes what must never be seen.
contract Handler is Network {
    uint256 private constant MAX_JOBS = 12;
    uint256 private constant MAX_GRANTS = 4;
    uint8 private constant ACTS = 16;

    JobId[] public jobIds;
    GrantId[] public grantIds;
    mapping(JobId jobId => IJobLedger.JobState) private _seen;
    mapping(JobId jobId => bool) private _opened;
    uint64 private _epoch = 1;
    uint64 private _nonce;

    /// @dev Each counts what must stay at zero.
    uint256 public skipped;
    uint256 public epochsNotNext;
    uint256 public actsOfSuspended;
    uint256 public actsOfStrangers;
    /// @dev Highest state on the straight path that any job reached.
    IJobLedger.JobState public furthest;

    modifier observed() {
        _;
        _observe();
    }

    constructor() {
        _deploy();
        grantIds.push(_grant(5, 3_000));
    }

    function post(uint256 grantSeed, uint64 rho, uint8 epochsBack) external observed {
        if (jobIds.length == MAX_JOBS) return;
        GrantId grantId = grantIds[grantSeed % grantIds.length];
        uint64 epoch = epochsBack % 8 == 0 ? _epoch - 1 : _epoch;
        IJobLedger.JobRequest memory request = _request(grantId, epoch, (rho % 2_000) + 1, ++_nonce);
        JobId jobId = jobs.jobIdOf(_id(PARTNER), request);
        if (!_try(_account(PARTNER), abi.encodeCall(jobs.postJob, (request)))) return;
        _asked[jobId] = request;
        jobIds.push(jobId);
    }

    /// @dev Takes the next steps of a job; `choice` now and then makes them the wrong ones.
    function advance(uint256 jobSeed, uint8 choice, uint8 steps) external {
        if (jobIds.length == 0) return;
        JobId jobId = jobIds[jobSeed % jobIds.length];
        for (uint8 i = 0; i <= steps % 8; ++i) _step(jobId, choice);
    }

    function close(uint256 jobSeed, uint8 which) external observed {
        if (jobIds.length == 0) return;
        JobId jobId = jobIds[jobSeed % jobIds.length];
        OrgId requester = _id(PARTNER);
        bytes memory data = abi.encodeCall(jobs.expireJob, (requester, _asked[jobId]));
        if (which % 3 == 1) data = abi.encodeCall(jobs.closeCommits, (requester, _asked[jobId]));
        if (which % 3 == 2) data = abi.encodeCall(jobs.closeReveals, (requester, _asked[jobId]));
        _try(_account(which % MEMBERS), data);
    }

    function wait_(uint8 seconds_) external observed {
        VM.warp(block.timestamp + seconds_);
    }

    function anchor(uint64 epoch, bool next) external observed {
        if (next) epoch = _epoch + 1;
        VM.prank(_account(STEWARD));
        try consents.anchorEpoch(PURPOSE, epoch, "root", "status", 50) {
            if (epoch != _epoch + 1) ++epochsNotNext;
            _epoch = epoch;
        } catch {}
    }

    function setBudget(uint64 total) external observed {
        VM.prank(_account(STEWARD));
        try budgets.setBudget(bundle, total % 5_000) {} catch {}
    }

    function grant(uint32 uses, uint64 rho) external observed {
        if (grantIds.length == MAX_GRANTS || !_active(STEWARD) || !_active(PARTNER)) return;
        grantIds.push(_grant(uses % 6, rho % 6_000));
    }

    function revoke(uint256 seed) external observed {
        if (seed % 8 != 0) return;
        GrantId grantId = grantIds[seed % grantIds.length];
        VM.prank(_account(STEWARD));
        try rights.revokeUsage(grantId) {} catch {}
    }

    function suspend(uint8 member, bool reinstate) external observed {
        if (!reinstate && member % 4 != 0) return;
        VM.prank(COUNCIL);
        participants.setStatus(
            _id(member % MEMBERS),
            reinstate ? IParticipantRegistry.Status.Active : IParticipantRegistry.Status.Suspended
        );
    }

    /// @dev A suspended member, and a stranger, try every act on a live job and on the member's own things.
    function trespass(uint8 member, uint256 jobSeed) external observed {
        uint256 i = member % MEMBERS;
        IParticipantRegistry.Status before = participants.participant(_id(i)).status;
        VM.prank(COUNCIL);
        participants.setStatus(_id(i), IParticipantRegistry.Status.Suspended);
        JobId jobId = jobIds.length == 0 ? JobId.wrap(0) : jobIds[jobSeed % jobIds.length];
        for (uint8 what = 0; what < ACTS; ++what) {
            (address target, bytes memory data) = _act(what, jobId, i);
            actsOfSuspended += _done(_account(i), target, data) + _done(_node(i), target, data);
            actsOfStrangers += _done(address(0x8000), target, data);
        }
        VM.prank(COUNCIL);
        participants.setStatus(_id(i), before);
    }

    function jobCount() external view returns (uint256) {
        return jobIds.length;
    }

    function grantCount() external view returns (uint256) {
        return grantIds.length;
    }

    function jobOf(uint256 i) external view returns (IJobLedger.Progress memory) {
        return jobs.progress(jobIds[i]);
    }

    function rhoOf(uint256 i) external view returns (uint64) {
        return _asked[jobIds[i]].rhoMicro;
    }

    function wasOpened(uint256 i) external view returns (bool) {
        return _opened[jobIds[i]];
    }

    function grantOf(uint256 i) external view returns (IUsageRights.Grant memory, uint64 committed) {
        return (rights.grant(grantIds[i]), rights.committedUnder(grantIds[i]));
    }

    function account() external view returns (IPrivacyBudget.Account memory) {
        return budgets.account(bundle);
    }

    function _step(JobId jobId, uint8 choice) private observed {
        IJobLedger.JobState state = jobs.progress(jobId).state;
        OrgId requester = _id(PARTNER);
        if (choice % 16 == 15) state = IJobLedger.JobState((choice >> 4) % 10);
        if (state == IJobLedger.JobState.Posted) _try(_node(COMPUTE), abi.encodeCall(jobs.claimJob, (jobId)));
        else if (state == IJobLedger.JobState.Claimed) _commitResult(jobId, "result");
        else if (state == IJobLedger.JobState.Committed) _commit(jobId, choice);
        else if (state == IJobLedger.JobState.Revealing) _reveal(jobId, choice);
        else if (state == IJobLedger.JobState.Disputed) {
            _try(COUNCIL, abi.encodeCall(jobs.settleDispute, (requester, _asked[jobId], choice % 2 == 0)));
        } else if (state == IJobLedger.JobState.Verified) {
            bytes memory open = abi.encodeCall(jobs.openRelease, (requester, _asked[jobId]));
            bytes memory refuse = abi.encodeCall(
                jobs.refuseRelease,
                (requester, _asked[jobId], Refusal.ResultInvalid)
            );
            _try(_node(STEWARD), choice % 8 == 7 ? refuse : open);
        } else if (state == IJobLedger.JobState.Opened) {
            _try(_node(STEWARD), abi.encodeCall(jobs.recordRelease, (jobId, bytes32("release"), 1)));
        }
    }

    function _commit(JobId jobId, uint8 choice) private {
        uint256[] memory verifiers = new uint256[](VERIFIERS);
        bytes32[] memory commitments = new bytes32[](VERIFIERS);
        for (uint256 i = 0; i < VERIFIERS; ++i) {
            bytes32 found = (choice >> i) & 9 == 9 ? bytes32("other") : bytes32("result");
            (verifiers[i], commitments[i]) = (i, _commitment(jobId, i, found));
            if (choice % 2 == 1) _commitVerdict(jobId, i, commitments[i]);
        }
        if (choice % 2 == 0) _commitVerdicts(jobId, verifiers, commitments);
    }

    function _reveal(JobId jobId, uint8 choice) private {
        for (uint256 i = 0; i < VERIFIERS; ++i) {
            if (choice % 5 == 4 && i == choice % 3) continue;
            if (!_revealVerdict(jobId, i, "result", POSSESSION, SALT)) {
                _revealVerdict(jobId, i, "other", POSSESSION, SALT);
            }
        }
    }

    function _done(address sender, address target, bytes memory data) private returns (uint256) {
        VM.prank(sender);
        (bool done, ) = target.call(data);
        return done ? 1 : 0;
    }

    function _act(uint8 what, JobId jobId, uint256 member) private view returns (address, bytes memory) {
        OrgId requester = _id(PARTNER);
        IJobLedger.JobRequest memory asked = _asked[jobId];
        IJobLedger.SignedVerdict[] memory words = new IJobLedger.SignedVerdict[](1);
        words[0] = _word(jobId, member, "evil");
        if (what == 0) return (address(jobs), abi.encodeCall(jobs.claimJob, (jobId)));
        if (what == 1) return (address(jobs), abi.encodeCall(jobs.commitResult, (jobId, bytes32("evil"), words)));
        if (what == 2) return (address(jobs), abi.encodeCall(jobs.commitVerdicts, (jobId, words)));
        if (what == 3) return (address(jobs), abi.encodeCall(jobs.closeCommits, (requester, asked)));
        if (what == 4) return (address(jobs), abi.encodeCall(jobs.closeReveals, (requester, asked)));
        if (what == 5) return (address(jobs), abi.encodeCall(jobs.expireJob, (requester, asked)));
        if (what == 6) return (address(jobs), abi.encodeCall(jobs.openRelease, (requester, asked)));
        if (what == 7) {
            return (address(jobs), abi.encodeCall(jobs.refuseRelease, (requester, asked, Refusal.ResultInvalid)));
        }
        if (what == 8) return (address(jobs), abi.encodeCall(jobs.recordRelease, (jobId, bytes32("evil"), 1)));
        if (what == 9) return (address(jobs), abi.encodeCall(jobs.settleDispute, (requester, asked, true)));
        if (what == 10) return (address(jobs), _revealing(jobId, member, "result", POSSESSION, SALT));
        if (what == 11) {
            return (address(jobs), abi.encodeCall(jobs.postJob, (_request(grantIds[0], _epoch, 1, type(uint64).max))));
        }
        if (what == 12) return (address(budgets), abi.encodeCall(budgets.settle, (bundle, 1)));
        if (what == 13) return (address(budgets), abi.encodeCall(budgets.setBudget, (bundle, type(uint64).max)));
        if (what == 14) return (address(rights), abi.encodeCall(rights.restoreUse, (grantIds[0], 1)));
        return (address(consents), abi.encodeCall(consents.anchorEpoch, (PURPOSE, _epoch + 1, "r", "s", 50)));
    }

    function _observe() private {
        uint256 count = jobIds.length;
        for (uint256 i = 0; i < count; ++i) {
            JobId jobId = jobIds[i];
            IJobLedger.Progress memory job = jobs.progress(jobId);
            IJobLedger.JobState before = _seen[jobId];
            if (job.state == before) continue;
            _seen[jobId] = job.state;
            if (job.state == IJobLedger.JobState.Opened) _opened[jobId] = true;
            if (!_allowed(before, job)) ++skipped;
            if (job.state <= IJobLedger.JobState.Released && job.state > furthest) furthest = job.state;
        }
        if (consents.currentEpoch(_id(STEWARD), PURPOSE).epoch != _epoch) ++epochsNotNext;
    }

    function _allowed(IJobLedger.JobState before, IJobLedger.Progress memory job) private pure returns (bool) {
        if (job.state == IJobLedger.JobState.Released) return before == IJobLedger.JobState.Opened;
        if (job.state == IJobLedger.JobState.Opened) return before == IJobLedger.JobState.Verified;
        if (job.state == IJobLedger.JobState.Verified) {
            bool judged = before == IJobLedger.JobState.Revealing || before == IJobLedger.JobState.Disputed;
            return judged && job.agreeing >= job.replicas && job.replicas >= QUORUM;
        }
        bool ended = before == IJobLedger.JobState.Denied || before >= IJobLedger.JobState.Released;
        return !ended;
    }

    function _active(uint256 i) private view returns (bool) {
        return participants.isActive(_id(i));
    }
}
