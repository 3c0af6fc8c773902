// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {IAccessManager} from "@openzeppelin/contracts/access/manager/IAccessManager.sol";
import {OrgId, ArtifactId, KeyId, JobId, Refusal} from "./Ids.sol";
import {EventSeries} from "./EventSeries.sol";
import {IParticipantRegistry, ROLE_STEWARD} from "./IParticipantRegistry.sol";
import {IKeyRegistry} from "./IKeyRegistry.sol";
import {ILineageRegistry} from "./ILineageRegistry.sol";

/// @title LineageRegistry
/// @notice Bundles without their parents, which only events carry, and which other artifacts are frozen.
contract LineageRegistry is ILineageRegistry, AccessManaged {
    using EventSeries for EventSeries.Series;

    struct Node {
        ArtifactKind kind;
        bool frozenBySteward;
        bool frozenByCouncil;
        uint32 policyVersion;
        uint64 retainUntil;
        uint64 registeredAt;
        OrgId steward;
        KeyId keyId;
        bytes32 contentDigest;
        bytes32 policyDigest;
        bytes32 consentScope;
    }

    uint256 private constant MAX_PARENTS = 32;

    IParticipantRegistry private immutable PARTICIPANTS;
    IKeyRegistry private immutable KEYS;

    mapping(ArtifactId artifactId => Node) private _nodes;
    mapping(ArtifactId artifactId => EventSeries.Series) private _series;

    constructor(
        address authority,
        IParticipantRegistry participants,
        IKeyRegistry keys
    ) AccessManaged(authority) {
        PARTICIPANTS = participants;
        KEYS = keys;
    }

    /// @inheritdoc ILineageRegistry
    function registerBundle(BundleRegistration calldata registration) external returns (ArtifactId artifactId) {
        OrgId steward = PARTICIPANTS.requireAuthority(msg.sender, ROLE_STEWARD);
        _requireValid(registration);
        if (!KEYS.isUsable(registration.keyId)) revert LineageRegistryKeyNotUsable(registration.keyId);
        OrgId custodian = KEYS.keyDomain(registration.keyId).custodian;
        if (custodian != steward) revert LineageRegistryKeyNotOwn(registration.keyId, custodian);
        artifactId = ArtifactId.wrap(keccak256(abi.encode(steward, registration.contentDigest)));

        Node storage node = _nodes[artifactId];
        if (node.kind != ArtifactKind.None) revert LineageRegistryAlreadyKnown(artifactId);
        node.kind = ArtifactKind.Bundle;
        node.registeredAt = uint64(block.timestamp);
        node.steward = steward;
        node.keyId = registration.keyId;
        node.contentDigest = registration.contentDigest;
        node.policyVersion = 1;
        node.retainUntil = registration.retainUntil;
        node.policyDigest = registration.policyDigest;
        node.consentScope = registration.consentScope;
        (uint64 sequence, bytes32 head) = _series[artifactId].advance(
            BundleRegistered.selector,
            abi.encode(artifactId, steward, registration)
        );
        emit BundleRegistered(artifactId, steward, registration, sequence, head);
    }

    /// @inheritdoc ILineageRegistry
    function setPolicy(ArtifactId artifactId, bytes32 policyDigest) external {
        OrgId caller = PARTICIPANTS.requireAuthority(msg.sender, ROLE_STEWARD);
        Node storage node = _nodes[artifactId];
        if (node.kind != ArtifactKind.Bundle) revert LineageRegistryUnknown(artifactId);
        if (node.steward != caller) revert LineageRegistryNotSteward(artifactId, msg.sender);
        if (policyDigest == 0) revert LineageRegistryInvalidRegistration(policyDigest);

        uint32 policyVersion = ++node.policyVersion;
        node.policyDigest = policyDigest;
        (uint64 sequence, bytes32 head) = _series[artifactId].advance(
            PolicyChanged.selector,
            abi.encode(artifactId, policyDigest, policyVersion)
        );
        emit PolicyChanged(artifactId, policyDigest, policyVersion, sequence, head);
    }

    /// @inheritdoc ILineageRegistry
    function setFrozen(ArtifactId artifactId, bool frozen) external {
        Node storage node = _nodes[artifactId];
        OrgId caller = PARTICIPANTS.organisationOf(msg.sender);
        if (node.kind != ArtifactKind.None && caller == node.steward) {
            PARTICIPANTS.requireAuthority(msg.sender, 0);
            if (node.frozenByCouncil && !frozen) revert LineageRegistryFrozenByCouncil(artifactId);
            node.frozenBySteward = frozen;
        } else {
            (bool council, ) = IAccessManager(authority()).canCall(msg.sender, address(this), msg.sig);
            if (!council) revert LineageRegistryNotSteward(artifactId, msg.sender);
            node.frozenByCouncil = frozen;
        }

        FreezeState state = _freezeState(node);
        (uint64 sequence, bytes32 head) = _series[artifactId].advance(
            ArtifactFrozen.selector,
            abi.encode(artifactId, state)
        );
        emit ArtifactFrozen(artifactId, state, sequence, head);
    }

    /// @inheritdoc ILineageRegistry
    function artifact(ArtifactId artifactId) external view returns (Artifact memory) {
        Node storage node = _nodes[artifactId];
        return
            Artifact({
                kind: node.kind,
                steward: node.steward,
                keyId: node.keyId,
                contentDigest: node.contentDigest,
                policyDigest: node.policyDigest,
                policyVersion: node.policyVersion,
                consentScope: node.consentScope,
                retainUntil: node.retainUntil,
                registeredAt: node.registeredAt,
                frozen: _freezeState(node)
            });
    }

    /// @inheritdoc ILineageRegistry
    function usability(ArtifactId artifactId) external view returns (Refusal) {
        return _usability(_nodes[artifactId]);
    }

    /// @inheritdoc ILineageRegistry
    function bundle(
        ArtifactId artifactId
    ) external view returns (Refusal refusal, OrgId steward, bytes32 consentScope, uint32 policyVersion) {
        Node storage node = _nodes[artifactId];
        return (_usability(node), node.steward, node.consentScope, node.policyVersion);
    }

    /// @inheritdoc ILineageRegistry
    function stewardOf(ArtifactId artifactId) external view returns (OrgId) {
        return _nodes[artifactId].steward;
    }

    /// @inheritdoc ILineageRegistry
    function isFrozen(ArtifactId artifactId) external view returns (bool) {
        return _freezeState(_nodes[artifactId]) != FreezeState.None;
    }

    /// @inheritdoc ILineageRegistry
    function seriesHead(ArtifactId artifactId) external view returns (uint64 length, bytes32 head) {
        return _series[artifactId].end();
    }

    /// @inheritdoc ILineageRegistry
    function derivedIdOf(JobId jobId, ArtifactKind kind) external pure returns (ArtifactId) {
        return ArtifactId.wrap(keccak256(abi.encode(jobId, kind)));
    }

    function _usability(Node storage node) private view returns (Refusal) {
        if (node.kind != ArtifactKind.Bundle) return Refusal.ArtifactMismatch;
        if (node.frozenBySteward || node.frozenByCouncil) return Refusal.ArtifactFrozen;
        if (block.timestamp >= node.retainUntil) return Refusal.RetentionPassed;
        if (!PARTICIPANTS.hasRole(node.steward, ROLE_STEWARD)) return Refusal.StewardNotActive;
        if (!KEYS.isUsable(node.keyId)) return Refusal.KeyDomainNotActive;
        return Refusal.None;
    }

    function _requireValid(BundleRegistration calldata registration) private view {
        bool valid = registration.contentDigest != 0 &&
            registration.policyDigest != 0 &&
            registration.consentScope != 0 &&
            registration.retainUntil > block.timestamp;
        if (!valid) revert LineageRegistryInvalidRegistration(registration.contentDigest);
        uint256 parents = registration.parents.length;
        if (parents > MAX_PARENTS) revert LineageRegistryTooManyParents(parents);
        for (uint256 i = 0; i < parents; ++i) _requireParent(registration.parents[i]);
    }

    function _requireParent(ArtifactId parent) private view {
        bool known = _nodes[parent].kind != ArtifactKind.None;
        if (!known) revert LineageRegistryUnknownParent(parent);
    }

    function _freezeState(Node storage node) private view returns (FreezeState) {
        if (node.frozenByCouncil) return FreezeState.ByCouncil;
        return node.frozenBySteward ? FreezeState.BySteward : FreezeState.None;
    }
}
