// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {ArtifactId, GrantId, JobId, KeyId} from "../../contracts/Ids.sol";
import {EventSeries} from "../../contracts/EventSeries.sol";
import {IParticipantRegistry, ROLE_STEWARD, ROLE_CUSTODIAN} from "../../contracts/IParticipantRegistry.sol";
import {ILineageRegistry} from "../../contracts/ILineageRegistry.sol";
import {IJobLedger} from "../../contracts/IJobLedger.sol";
import {MemberCouncil} from "../../contracts/MemberCouncil.sol";
import {Network} from "./Network.sol";

/// @dev Single calls on arbitrary values, against plain models of what should happen.
contract FuzzTest is Network {
    using EventSeries for EventSeries.Series;

    EventSeries.Series private _series;

    function setUp() public {
        _deploy();
    }

    function testFuzz_EverySeriesHeadFollowsFromTheEventsBefore(bytes32[4] memory topics, bytes[4] memory payloads) public {
        bytes32 expected;
        for (uint64 i = 0; i < 4; ++i) {
            expected = keccak256(abi.encode(expected, i + 1, topics[i], keccak256(payloads[i])));
            (uint64 sequence, bytes32 head) = _series.advance(topics[i], payloads[i]);
            assert(sequence == i + 1 && head == expected);
            (uint64 length, bytes32 last) = _series.end();
            assert(length == sequence && last == head);
        }
    }

    function testFuzz_ABundleIsRegisteredOnlyUnderAKeyOfItsOwnSteward(KeyId keyId, uint8 custodian, uint8 steward) public {
        VM.assume(KeyId.unwrap(keyId) != 0 && KeyId.unwrap(keyId) != KeyId.unwrap(KEY));
        uint256 keeper = custodian % MEMBERS;
        uint256 registrant = steward % MEMBERS;
        for (uint256 i = 0; i < MEMBERS; ++i) {
            VM.prank(COUNCIL);
            participants.setRoles(_id(i), ROLE_STEWARD | ROLE_CUSTODIAN);
        }
        VM.prank(_account(keeper));
        keys.registerKeyDomain(keyId, "parameters", "public");
        try this.register(registrant, keyId) returns (ArtifactId artifactId) {
            assert(keeper == registrant);
            assert(lineage.artifact(artifactId).steward == keys.keyDomain(keyId).custodian);
        } catch (bytes memory reason) {
            assert(keeper != registrant);
            bytes memory expected = abi.encodeWithSelector(
                ILineageRegistry.LineageRegistryKeyNotOwn.selector,
                keyId,
                _id(keeper)
            );
            assert(keccak256(reason) == keccak256(expected));
        }
    }

    /// @dev External, so that a test can catch what it reverts with.
    function register(uint256 steward, KeyId keyId) external returns (ArtifactId) {
        return _register(steward, keyId, "fuzzed");
    }

    function testFuzz_OnlyCohortFloorsOnTheScaleAreAnchored(uint32 floor, bool near) public {
        if (near) floor = floor % 1200;
        bool onScale = floor == 0;
        for (uint256 power = 10; power <= type(uint32).max; power *= 10) {
            onScale = onScale || floor == power || floor == 2 * power || floor == 5 * power;
        }
        VM.prank(_account(STEWARD));
        try consents.anchorEpoch("scope", 1, "root", "status", floor) {
            assert(onScale);
        } catch {
            assert(!onScale);
        }
    }

    function testFuzz_OnlyTheNextEpochIsAnchored(uint64 epoch) public {
        VM.prank(_account(STEWARD));
        try consents.anchorEpoch(PURPOSE, epoch, "root", "status", 50) {
            assert(epoch == 2);
        } catch {
            assert(epoch != 2);
        }
    }

    function testFuzz_NoRequestSpendsMoreThanBundleOrGrantHave(uint64 total, uint64 ofGrant, uint64 rho) public {
        VM.assume(rho != 0);
        VM.prank(_account(STEWARD));
        budgets.setBudget(bundle, total);
        GrantId grantId = _grant(10, ofGrant);
        for (uint64 nonce = 1; nonce <= 3; ++nonce) {
            JobId jobId = _post(_request(grantId, 1, rho, nonce));
            uint256 wanted = uint256(rho) * nonce;
            bool admitted = jobs.progress(jobId).state == IJobLedger.JobState.Posted;
            assert(admitted == (wanted <= total && wanted <= ofGrant));
        }
    }

    function testFuzz_ACommitmentOpensOnlyToWhatItBinds(
        bytes32 found,
        bytes32 possession,
        bytes32 salt,
        bytes32 noise,
        uint8 field
    ) public {
        VM.assume(noise != 0);
        JobId jobId = _committed();
        bytes32 bound = keccak256(
            abi.encode(block.chainid, address(jobs), jobId, _id(1), found, possession, salt)
        );
        for (uint256 i = 0; i < VERIFIERS; ++i) assert(_commitVerdict(jobId, i, bound));
        field = field % 3;
        bool altered = _revealVerdict(
            jobId,
            1,
            field == 0 ? found ^ noise : found,
            field == 1 ? possession ^ noise : possession,
            field == 2 ? salt ^ noise : salt
        );
        assert(!altered);
        assert(!_revealVerdict(jobId, 2, found, possession, salt));
        assert(_revealVerdict(jobId, 1, found, possession, salt));
        assert(jobs.progress(jobId).agreeing + jobs.progress(jobId).dissenting == 1);
    }

    function testFuzz_TheVerdictFollowsFromTheReveals(uint8[3] memory found, uint8 present) public {
        JobId jobId = _committed();
        uint256 agreeing;
        uint256[2] memory against;
        for (uint256 i = 0; i < VERIFIERS; ++i) {
            found[i] = found[i] % 3;
            assert(_commitVerdict(jobId, i, _commitment(jobId, i, _digest(found[i]))));
        }
        for (uint256 i = 0; i < VERIFIERS; ++i) {
            if ((present >> i) & 1 == 0) continue;
            assert(_revealVerdict(jobId, i, _digest(found[i]), POSSESSION, SALT));
            if (found[i] == 0) ++agreeing;
            else ++against[found[i] - 1];
        }
        if (present & 7 != 7) {
            VM.warp(block.timestamp + STATE_SECONDS);
            VM.prank(_node(COMPUTE));
            jobs.closeReveals(_id(PARTNER), _asked[jobId]);
        }
        assert(jobs.progress(jobId).state == _verdict(agreeing, against));
    }

    function testFuzz_SupportMustExceedTheQuorumOfActiveMembers(uint16 bps, uint8 votes, uint8 suspended) public {
        bps = 5000 + (bps % 5000);
        MemberCouncil council = new MemberCouncil(participants, 1 days, bps);
        VM.prank(_account(0));
        uint256 id = council.propose(address(participants), "");
        uint256 active = MEMBERS;
        uint256 support;
        for (uint256 i = 0; i < MEMBERS; ++i) {
            bool inFavour = i == 0 || (votes >> i) & 1 == 1;
            if (i != 0) {
                VM.prank(_account(i));
                council.vote(id, inFavour);
            }
            if ((suspended >> i) & 1 == 1) {
                --active;
                VM.prank(COUNCIL);
                participants.setStatus(_id(i), IParticipantRegistry.Status.Suspended);
            } else if (inFavour) {
                ++support;
            }
        }
        (uint256 counted, uint256 needed) = council.tally(id);
        assert(counted == support && needed == (active * bps) / 10000 + 1);
        assert(needed * 2 > active);
    }

    function _committed() private returns (JobId jobId) {
        GrantId grantId = _grant(1, 1_000);
        jobId = _post(_request(grantId, 1, 1, 1));
        VM.prank(_node(COMPUTE));
        jobs.claimJob(jobId);
        assert(_commitResult(jobId, _digest(0)));
    }

    function _digest(uint8 found) private pure returns (bytes32) {
        return bytes32(uint256(found) + 1);
    }

    function _verdict(uint256 agreeing, uint256[2] memory against) private pure returns (IJobLedger.JobState) {
        bool dissent = against[0] + against[1] != 0;
        if (!dissent) return agreeing >= QUORUM ? IJobLedger.JobState.Verified : IJobLedger.JobState.Expired;
        bool united = against[0] >= QUORUM || against[1] >= QUORUM;
        return united && agreeing < QUORUM ? IJobLedger.JobState.Refuted : IJobLedger.JobState.Disputed;
    }
}
