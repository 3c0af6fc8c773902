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

    function _deploy() internal {
        VM.warp(1_800_000_000);
        AccessManager manager = new AccessManager(address(this));
        participants = new ParticipantRegistry(address(manager), new OpenPermissions());
        keys = new KeyRegistry(address(manager), participants);
        lineage = new LineageRegistry(address(manager), participants, keys);
        consents = new ConsentRegistry(participants);
        rights = new UsageRights(address(manager), participants, lineage);
        budgets = new PrivacyBudget(address(manager), participants, lineage, rights);
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
            keys,
            lineage,
            consents,
            rights,
            budgets,
            timings,
            QUORUM
        );
        _forJobs(manager, address(lineage), lineage.recordDerived.selector);
        _forJobs(manager, address(rights), rights.consumeUse.selector);
        _forJobs(manager, address(rights), rights.restoreUse.selector);
        _forJobs(manager, address(budgets), budgets.reserve.selector);
        _forJobs(manager, address(budgets), budgets.settle.selector);
        _forJobs(manager, address(budgets), budgets.refund.selector);
        manager.grantRole(1, address(jobs), 0);
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

    function _forJobs(AccessManager manager, address target, bytes4 selector) private {
        bytes4[] memory selectors = new bytes4[](1);
        selectors[0] = selector;
        manager.setTargetFunctionRole(target, selectors, 1);
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
        return address(uint160(0x2000 + i));
    }
}
