// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {IAccessManager} from "@openzeppelin/contracts/access/manager/IAccessManager.sol";
import {OrgId, KeyId} from "./Ids.sol";
import {IParticipantRegistry, ROLE_CUSTODIAN} from "./IParticipantRegistry.sol";
import {IKeyRegistry} from "./IKeyRegistry.sol";

/// @title KeyRegistry
/// @notice Allowed parameters and key domains.
contract KeyRegistry is IKeyRegistry, AccessManaged {
    uint16 private constant MIN_SECURITY_BITS = 128;

    IParticipantRegistry private immutable PARTICIPANTS;

    mapping(bytes32 parametersId => bool) private _allowed;
    mapping(KeyId keyId => KeyDomain) private _domains;
    mapping(OrgId custodian => uint32) private _epochs;

    constructor(address authority, IParticipantRegistry participants) AccessManaged(authority) {
        PARTICIPANTS = participants;
    }

    /// @inheritdoc IKeyRegistry
    function allowParameters(bytes32 parametersId, uint16 securityBits) external restricted {
        if (securityBits < MIN_SECURITY_BITS) revert KeyRegistryWeakParameters(parametersId, securityBits);

        _allowed[parametersId] = true;
        emit ParametersAllowed(parametersId, securityBits);
    }

    /// @inheritdoc IKeyRegistry
    function disallowParameters(bytes32 parametersId) external restricted {
        if (!_allowed[parametersId]) revert KeyRegistryParametersNotAllowed(parametersId);

        _allowed[parametersId] = false;
        emit ParametersDisallowed(parametersId);
    }

    /// @inheritdoc IKeyRegistry
    function registerKeyDomain(KeyId keyId, bytes32 parametersId, bytes32 publicDigest) external {
        OrgId custodian = PARTICIPANTS.requireAuthority(msg.sender, ROLE_CUSTODIAN);
        if (KeyId.unwrap(keyId) == 0 || publicDigest == 0) revert KeyRegistryInvalidDomain(keyId);
        if (!_allowed[parametersId]) revert KeyRegistryParametersNotAllowed(parametersId);
        if (_domains[keyId].status != KeyStatus.None) revert KeyRegistryAlreadyKnown(keyId);

        uint32 epoch = ++_epochs[custodian];
        _domains[keyId] = KeyDomain({
            custodian: custodian,
            parametersId: parametersId,
            publicDigest: publicDigest,
            epoch: epoch,
            registeredAt: uint64(block.timestamp),
            status: KeyStatus.Active
        });
        emit KeyDomainRegistered(keyId, custodian, parametersId, publicDigest, epoch);
    }

    /// @inheritdoc IKeyRegistry
    function retire(KeyId keyId) external {
        OrgId caller = PARTICIPANTS.requireAuthority(msg.sender, 0);
        KeyDomain storage domain = _requireKnown(keyId);
        if (domain.custodian != caller) revert KeyRegistryNotCustodian(keyId, msg.sender);
        if (domain.status != KeyStatus.Active) revert KeyRegistryNotActive(keyId, domain.status);

        _setStatus(keyId, domain, KeyStatus.Retired);
    }

    /// @inheritdoc IKeyRegistry
    function markCompromised(KeyId keyId) external {
        KeyDomain storage domain = _requireKnown(keyId);
        if (PARTICIPANTS.organisationOf(msg.sender) == domain.custodian) {
            PARTICIPANTS.requireAuthority(msg.sender, 0);
        } else {
            (bool council, ) = IAccessManager(authority()).canCall(msg.sender, address(this), msg.sig);
            if (!council) revert KeyRegistryNotCustodian(keyId, msg.sender);
        }
        if (domain.status == KeyStatus.Compromised) revert KeyRegistryNotActive(keyId, domain.status);

        _setStatus(keyId, domain, KeyStatus.Compromised);
    }

    /// @inheritdoc IKeyRegistry
    function isAllowed(bytes32 parametersId) external view returns (bool) {
        return _allowed[parametersId];
    }

    /// @inheritdoc IKeyRegistry
    function keyDomain(KeyId keyId) external view returns (KeyDomain memory) {
        return _domains[keyId];
    }

    /// @inheritdoc IKeyRegistry
    function isUsable(KeyId keyId) external view returns (bool) {
        KeyDomain storage domain = _domains[keyId];
        return domain.status == KeyStatus.Active && PARTICIPANTS.hasRole(domain.custodian, ROLE_CUSTODIAN);
    }

    function _setStatus(KeyId keyId, KeyDomain storage domain, KeyStatus status) private {
        domain.status = status;
        emit KeyStatusChanged(keyId, status);
    }

    function _requireKnown(KeyId keyId) private view returns (KeyDomain storage domain) {
        domain = _domains[keyId];
        if (domain.status == KeyStatus.None) revert KeyRegistryUnknown(keyId);
    }
}
