// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

/// @title EventSeries
/// @notice Numbers the events of one thing (a job, a grant, ...) and chains them by hash, so that a missing event shows.
/// @dev Every event of a series ends in `(uint64 sequence, bytes32 head)`. `payload` is `abi.encode` of all fields
/// before those two, in the order of declaration, indexed ones included. Then
/// `head = keccak256(abi.encode(previousHead, sequence, topic0, keccak256(payload)))`; sequence starts at 1, head at 0.
library EventSeries {
    struct Series {
        uint64 length;
        bytes32 head;
    }

    function advance(
        Series storage series,
        bytes32 topic,
        bytes memory payload
    ) internal returns (uint64 sequence, bytes32 head) {
        sequence = series.length + 1;
        head = keccak256(abi.encode(series.head, sequence, topic, keccak256(payload)));
        series.length = sequence;
        series.head = head;
    }
}
