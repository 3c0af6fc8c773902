// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {IJobLedger} from "../../contracts/IJobLedger.sol";
import {IUsageRights} from "../../contracts/IUsageRights.sol";
import {IPrivacyBudget} from "../../contracts/IPrivacyBudget.sol";
import {Handler} from "./Handler.sol";

/// @dev What holds after any sequence of acts.
contract InvariantsTest {
    Handler private _handler;

    function setUp() public {
        _handler = new Handler();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_handler);
    }

    function test_TheHandlerCanTakeAJobAllTheWay() public {
        _handler.post(0, 10, 1);
        _handler.advance(0, 0, 5);
        assert(_handler.furthest() == IJobLedger.JobState.Released);
        assert(_handler.account().spent == 11);
    }

    function invariant_ReservedAndSpentAreTheJobsOwnAndWithinTheTotal() public view {
        uint256 reserved;
        uint256 spent;
        uint256 count = _handler.jobCount();
        for (uint256 i = 0; i < count; ++i) {
            IJobLedger.Progress memory job = _handler.jobOf(i);
            if (_handler.wasOpened(i)) spent += _handler.rhoOf(i);
            else if (_live(job.state)) reserved += _handler.rhoOf(i);
        }
        IPrivacyBudget.Account memory joint = _handler.account();
        assert(joint.reserved == reserved && joint.spent == spent);
        assert(reserved + spent <= joint.total);
    }

    function invariant_NoGrantIsUsedOrSpentBeyondItsTerms() public view {
        uint256 grants = _handler.grantCount();
        for (uint256 g = 0; g < grants; ++g) {
            (IUsageRights.Grant memory grant, uint64 committed) = _handler.grantOf(g);
            assert(grant.used <= grant.terms.uses && committed <= grant.terms.rhoMicro);
        }
    }

    function invariant_UsesAreThoseOfLiveAndOpenedJobs() public view {
        uint256 used;
        uint256 grants = _handler.grantCount();
        for (uint256 g = 0; g < grants; ++g) {
            (IUsageRights.Grant memory grant, ) = _handler.grantOf(g);
            used += grant.used;
        }
        uint256 count = _handler.jobCount();
        for (uint256 i = 0; i < count; ++i) {
            if (_handler.wasOpened(i) || _live(_handler.jobOf(i).state)) --used;
        }
        assert(used == 0);
    }

    function invariant_NoJobIsReleasedButThroughVerifiedAndOpened() public view {
        assert(_handler.skipped() == 0);
    }

    function invariant_EpochsGrowByOne() public view {
        assert(_handler.epochsNotNext() == 0);
    }

    function invariant_SuspendedMembersAndStrangersChangeNothing() public view {
        assert(_handler.actsOfSuspended() == 0);
        assert(_handler.actsOfStrangers() == 0);
    }

    function _live(IJobLedger.JobState state) private pure returns (bool) {
        return
            state == IJobLedger.JobState.Posted ||
            (state >= IJobLedger.JobState.Claimed && state <= IJobLedger.JobState.Verified);
    }
}
