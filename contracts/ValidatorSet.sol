// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {EventSeries} from "./EventSeries.sol";
import {IValidatorSet} from "./IValidatorSet.sol";

/// @title ValidatorSet
/// @notice The chain's validators, replaced whole.
contract ValidatorSet is IValidatorSet, AccessManaged {
    using EventSeries for EventSeries.Series;

    uint256 private constant KEY_BYTES = 48;
    uint256 private constant MAX_VALIDATORS = 256;
    /// Of a compressed point's first byte: "compressed" set, "infinity" not; the third bit is the sign of y.
    bytes1 private constant FLAGS = 0xc0;
    bytes1 private constant COMPRESSED = 0x80;
    /// What is left of the first 32 bytes without the three flags.
    uint256 private constant COORDINATE = type(uint256).max >> 3;

    bytes32 private immutable CHAIN;

    bytes private _publicKeys;
    uint64[] private _weights;
    EventSeries.Series private _series;

    constructor(address authority, bytes32 chain_) AccessManaged(authority) {
        CHAIN = chain_;
    }

    /// @inheritdoc IValidatorSet
    function replace(bytes calldata publicKeys, uint64[] calldata weights) external restricted {
        _requireValid(publicKeys, weights);

        _publicKeys = publicKeys;
        _weights = weights;
        (uint64 sequence, bytes32 head) = _series.advance(
            ValidatorSetChanged.selector,
            abi.encode(CHAIN, publicKeys, weights)
        );
        emit ValidatorSetChanged(CHAIN, publicKeys, weights, sequence, head);
    }

    /// @inheritdoc IValidatorSet
    function current() external view returns (uint64 version, bytes memory publicKeys, uint64[] memory weights) {
        return (_series.length, _publicKeys, _weights);
    }

    /// @inheritdoc IValidatorSet
    function seriesHead(bytes32 chain_) external view returns (uint64 length, bytes32 head) {
        if (chain_ == CHAIN) return _series.end();
    }

    /// @inheritdoc IValidatorSet
    function chain() external view returns (bytes32) {
        return CHAIN;
    }

    function _requireValid(bytes calldata publicKeys, uint64[] calldata weights) private pure {
        uint256 count = weights.length;
        bool sized = count != 0 && count <= MAX_VALIDATORS && publicKeys.length == count * KEY_BYTES;
        if (!sized) revert ValidatorSetInvalid(publicKeys.length, count);

        uint256 total = 0;
        uint256 high = 0;
        uint128 low = 0;
        for (uint256 i = 0; i < count; ++i) {
            bytes calldata key = publicKeys[i * KEY_BYTES:(i + 1) * KEY_BYTES];
            uint256 nextHigh = uint256(bytes32(key[:32])) & COORDINATE;
            uint128 nextLow = uint128(bytes16(key[32:]));
            bool follows = nextHigh > high || (nextHigh == high && nextLow > low);
            if (weights[i] == 0 || key[0] & FLAGS != COMPRESSED || !follows) revert ValidatorSetInvalidValidator(i);
            (high, low) = (nextHigh, nextLow);
            total += weights[i];
        }
        if (total > type(uint64).max) revert ValidatorSetInvalid(publicKeys.length, count);
    }
}
