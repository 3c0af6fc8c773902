// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

/// @title EventSeries
/// @notice Numbers the events of one thing (a job, a grant, ...) and chains them by hash, so that a missing event shows.
/// @dev Every event of a series ends in `(uint64 sequence, bytes32 head)`. `payload` is `abi.encode` of all fields
/// before those two, in the order of declaration, indexed ones included. Then
/// `head = keccak256(abi.encode(previousHead, sequence, topic0, keccak256(payload)))`; sequence starts at 1, head at 0.
/// The events alone cannot show that one is missing at their end; the contract's `seriesHead`, read at the block up to
/// which they were collected, does.
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
        head = link(series.head, sequence, topic, keccak256(payload));
        series.length = sequence;
        series.head = head;
    }

    /// @notice Head after event number `sequence`, from the head before it: for contracts that keep number and head
    /// where it costs them least, and for whoever shows what led to a head.
    function link(
        bytes32 previousHead,
        uint64 sequence,
        bytes32 topic,
        bytes32 payloadHash
    ) internal pure returns (bytes32) {
        return keccak256(abi.encode(previousHead, sequence, topic, payloadHash));
    }

    /// @notice Number of events so far and head after the last; both 0 before the first.
    function end(Series storage series) internal view returns (uint64 length, bytes32 head) {
        return (series.length, series.head);
    }
}
