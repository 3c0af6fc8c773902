// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {AccessManager} from "@openzeppelin/contracts/access/manager/AccessManager.sol";
import {OrgId, ArtifactId, GrantId, JobId, KeyId, Level} from "../../contracts/Ids.sol";
import {
    IParticipantRegistry,
    ROLE_STEWARD,
    ROLE_CUSTODIAN,
    ROLE_PARTNER,
    ROLE_COMPUTE,
    ROLE_VERIFIER
} from "../../contracts/IParticipantRegistry.sol";
import {ILineageRegistry} from "../../contracts/ILineageRegistry.sol";
import {IUsageRights} from "../../contracts/IUsageRights.sol";
import {IJobLedger} from "../../contracts/IJobLedger.sol";
import {OpenPermissions} from "../../contracts/OpenPermissions.sol";
import {ParticipantRegistry} from "../../contracts/ParticipantRegistry.sol";
import {KeyRegistry} from "../../contracts/KeyRegistry.sol";
import {LineageRegistry} from "../../contracts/LineageRegistry.sol";
import {ConsentRegistry} from "../../contracts/ConsentRegistry.sol";
import {UsageRights} from "../../contracts/UsageRights.sol";
import {PrivacyBudget} from "../../contracts/PrivacyBudget.sol";
import {JobLedger} from "../../contracts/JobLedger.sol";

interface Vm {
    function prank(address sender) external;
    function warp(uint256 timestamp) external;
    function assume(bool condition) external pure;
    function addr(uint256 privateKey) external pure returns (address);
    function sign(uint256 privateKey, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function computeCreateAddress(address deployer, uint256 nonce) external pure returns (address);
    function getNonce(address account) external view returns (uint64);
}

/// @dev A network of five members with one bundle. COUNCIL stands for the members' council. Holds no test.
abstract contract Network {
    Vm internal constant VM = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
    address internal constant COUNCIL = address(0xC0);
    uint256 internal constant MEMBERS = 5;
    uint256 internal constant STEWARD = 0;
    uint256 internal constant PARTNER = 3;
    uint256 internal constant COMPUTE = 4;
    uint256 internal constant VERIFIERS = 3;
    bytes32 internal constant PURPOSE = "occupancy";
    bytes32 internal constant KERNEL = "kernel";
    bytes32 internal constant SALT = "salt";
    bytes32 internal constant POSSESSION = "possession";
    KeyId internal constant KEY = KeyId.wrap("key");
    uint32 internal constant STATE_SECONDS = 100;
    uint8 internal constant QUORUM = 2;

    ParticipantRegistry internal participants;
    KeyRegistry internal keys;
    LineageRegistry internal lineage;
    ConsentRegistry internal consents;
    UsageRights internal rights;
    PrivacyBudget internal budgets;
    JobLedger internal jobs;
    ArtifactId internal bundle;

    /// @dev What whoever reveals must show of a job, as it was seen to happen.
    struct Past {
        bytes32 head;
        bytes32 resultDigest;
        uint64 deadline;
        OrgId[] verifiers;
        bytes32[] commitments;
        bytes32[] revealed;
    }
    mapping(JobId jobId => IJobLedger.JobRequest) internal _asked;
    mapping(JobId jobId => Past) private _past;

    function _deploy() internal {
        VM.warp(1_800_000_000);
        AccessManager manager = new AccessManager(address(this));
        participants = new ParticipantRegistry(address(manager), new OpenPermissions());
        keys = new KeyRegistry(address(manager), participants);
        lineage = new LineageRegistry(address(manager), participants, keys);
        consents = new ConsentRegistry(participants);
        IJobLedger jobLedger = IJobLedger(
            VM.computeCreateAddress(address(this), VM.getNonce(address(this)) + 2)
        );
        rights = new UsageRights(participants, lineage, jobLedger);
        budgets = new PrivacyBudget(participants, lineage, jobLedger);
        IJobLedger.Timings memory timings = IJobLedger.Timings(
            STATE_SECONDS,
            STATE_SECONDS,
            STATE_SECONDS,
            STATE_SECONDS,
            STATE_SECONDS,
            STATE_SECONDS
        );
        jobs = new JobLedger(
            address(manager),
            participants,
            lineage,
            consents,
            rights,
            budgets,
            timings,
            QUORUM
        );
        assert(address(jobs) == address(jobLedger));
        for (uint256 i = 0; i < MEMBERS; ++i) participants.admit(_participant(i));
        keys.allowParameters("parameters", 128);
        manager.grantRole(0, COUNCIL, 0);
        manager.renounceRole(0, address(this));

        VM.prank(_account(STEWARD));
        keys.registerKeyDomain(KEY, "parameters", "public");
        bundle = _register(STEWARD, KEY, "bundle");
        _anchor(1);
        VM.prank(_account(STEWARD));
        budgets.setBudget(bundle, 10_000);
    }

    function _register(uint256 steward, KeyId keyId, bytes32 content) internal returns (ArtifactId) {
        ILineageRegistry.BundleRegistration memory registration = ILineageRegistry.BundleRegistration({
            contentDigest: content,
            parents: new ArtifactId[](0),
            keyId: keyId,
            policyDigest: "policy",
            consentScope: PURPOSE,
            retainUntil: uint64(block.timestamp + 3650 days)
        });
        VM.prank(_account(steward));
        return lineage.registerBundle(registration);
    }

    function _anchor(uint64 epoch) internal {
        VM.prank(_account(STEWARD));
        consents.anchorEpoch(PURPOSE, epoch, "root", "status", 50);
    }

    function _grant(uint32 uses, uint64 rhoMicro) internal returns (GrantId grantId) {
        IUsageRights.GrantTerms memory terms = IUsageRights.GrantTerms({
            kernels: new bytes32[](1),
            uses: uses,
            expiresAt: uint64(block.timestamp + 365 days),
            rhoMicro: rhoMicro,
            minCohort: 50,
            level: Level.Replicated,
            replicas: QUORUM,
            rowLevel: false
        });
        terms.kernels[0] = KERNEL;
        VM.prank(_account(PARTNER));
        grantId = rights.requestUsage(bundle, PURPOSE, terms);
        VM.prank(_account(STEWARD));
        rights.grantUsage(grantId, terms);
    }

    function _request(
        GrantId grantId,
        uint64 epoch,
        uint64 rhoMicro,
        uint64 nonce
    ) internal view returns (IJobLedger.JobRequest memory) {
        return
            IJobLedger.JobRequest({
                artifactId: bundle,
                grantId: grantId,
                kernelId: KERNEL,
                parametersDigest: "parameters",
                purpose: PURPOSE,
                consentEpoch: epoch,
                policyVersion: 1,
                rhoMicro: rhoMicro,
                rowLevel: false,
                nonce: nonce
            });
    }

    function _commitment(JobId jobId, uint256 verifier, bytes32 found) internal view returns (bytes32) {
        return
            keccak256(
                abi.encode(block.chainid, address(jobs), jobId, _id(verifier), found, POSSESSION, SALT)
            );
    }

    function _participant(uint256 i) internal pure returns (IParticipantRegistry.Participant memory) {
        uint16 roles = ROLE_VERIFIER;
        if (i == STEWARD) roles |= ROLE_STEWARD | ROLE_CUSTODIAN;
        if (i == PARTNER) roles = ROLE_PARTNER;
        if (i == COMPUTE) roles = ROLE_COMPUTE;
        return
            IParticipantRegistry.Participant({
                id: _id(i),
                account: _account(i),
                nodeAccount: _node(i),
                roles: roles,
                status: IParticipantRegistry.Status.Active,
                hpkeKey: "hpke",
                peerId: abi.encodePacked(i),
                endpoint: ""
            });
    }

    function _id(uint256 i) internal pure returns (OrgId) {
        return OrgId.wrap(bytes32(i + 1));
    }

    function _account(uint256 i) internal pure returns (address) {
        return address(uint160(0x1000 + i));
    }

    function _node(uint256 i) internal pure returns (address) {
        return VM.addr(_nodeKey(i));
    }

    function _nodeKey(uint256 i) private pure returns (uint256) {
        return 0x2000 + i;
    }

    /// @dev A verifier's signed word, good for ever.
    function _word(
        JobId jobId,
        uint256 verifier,
        bytes32 commitment
    ) internal view returns (IJobLedger.SignedVerdict memory) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Usufruct"),
                keccak256("1"),
                block.chainid,
                address(jobs)
            )
        );
        uint64 deadline = type(uint64).max;
        bytes32 message = keccak256(
            abi.encode(
                keccak256("Verdict(bytes32 jobId,bytes32 commitment,uint64 deadline)"),
                jobId,
                commitment,
                deadline
            )
        );
        (uint8 v, bytes32 r, bytes32 s) = VM.sign(
            _nodeKey(verifier),
            keccak256(abi.encodePacked(hex"1901", domain, message))
        );
        return IJobLedger.SignedVerdict(commitment, deadline, r, bytes32(uint256(s) | (uint256(v - 27) << 255)));
    }

    function _try(address sender, bytes memory data) internal returns (bool done) {
        VM.prank(sender);
        (done, ) = address(jobs).call(data);
    }

    function _post(IJobLedger.JobRequest memory request) internal returns (JobId jobId) {
        VM.prank(_account(PARTNER));
        jobId = jobs.postJob(request);
        _asked[jobId] = request;
    }

    function _commitResult(JobId jobId, bytes32 resultDigest) internal returns (bool done) {
        (, bytes32 head) = jobs.seriesHead(jobId);
        bytes memory none = abi.encodeCall(
            jobs.commitResult,
            (jobId, resultDigest, new IJobLedger.SignedVerdict[](0))
        );
        done = _try(_node(COMPUTE), none);
        if (!done) return done;
        Past storage past = _past[jobId];
        (past.head, past.resultDigest) = (head, resultDigest);
        past.deadline = uint64(block.timestamp) + STATE_SECONDS;
    }

    /// @dev Brings the words of these verifiers, in one batch.
    function _commitVerdicts(
        JobId jobId,
        uint256[] memory verifiers,
        bytes32[] memory commitments
    ) internal returns (bool done) {
        uint256 count = verifiers.length;
        for (uint256 i = 0; i < count; ++i) {
            for (uint256 j = i + 1; j < count; ++j) {
                if (_node(verifiers[i]) < _node(verifiers[j])) continue;
                (verifiers[i], verifiers[j]) = (verifiers[j], verifiers[i]);
                (commitments[i], commitments[j]) = (commitments[j], commitments[i]);
            }
        }
        IJobLedger.SignedVerdict[] memory words = new IJobLedger.SignedVerdict[](count);
        for (uint256 i = 0; i < count; ++i) words[i] = _word(jobId, verifiers[i], commitments[i]);
        done = _try(_node(COMPUTE), abi.encodeCall(jobs.commitVerdicts, (jobId, words)));
        if (!done) return done;
        for (uint256 i = 0; i < count; ++i) {
            _past[jobId].verifiers.push(_id(verifiers[i]));
            _past[jobId].commitments.push(commitments[i]);
        }
    }

    function _commitVerdict(JobId jobId, uint256 verifier, bytes32 commitment) internal returns (bool) {
        uint256[] memory verifiers = new uint256[](1);
        bytes32[] memory commitments = new bytes32[](1);
        (verifiers[0], commitments[0]) = (verifier, commitment);
        return _commitVerdicts(jobId, verifiers, commitments);
    }

    function _revealVerdict(
        JobId jobId,
        uint256 verifier,
        bytes32 found,
        bytes32 possession,
        bytes32 salt
    ) internal returns (bool done) {
        done = _try(_node(verifier), _revealing(jobId, verifier, found, possession, salt));
        if (!done) return done;
        bool agrees = found == _past[jobId].resultDigest;
        _past[jobId].revealed.push(keccak256(abi.encode(jobId, _id(verifier), found, possession, agrees)));
    }

    function _revealing(
        JobId jobId,
        uint256 verifier,
        bytes32 found,
        bytes32 possession,
        bytes32 salt
    ) internal view returns (bytes memory) {
        Past storage past = _past[jobId];
        uint8 position;
        for (uint8 i = 0; i < past.verifiers.length; ++i) if (past.verifiers[i] == _id(verifier)) position = i;
        IJobLedger.Opening[] memory openings = new IJobLedger.Opening[](1);
        openings[0] = IJobLedger.Opening(position, found, possession, salt);
        IJobLedger.Commitments memory committed = IJobLedger.Commitments(
            past.head,
            _id(COMPUTE),
            past.resultDigest,
            past.deadline,
            past.verifiers,
            past.commitments,
            past.revealed
        );
        return abi.encodeCall(jobs.revealVerdicts, (_id(PARTNER), _asked[jobId], committed, openings));
    }
}
