// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

/// @title IAddressBook
/// @notice The one record by which a network's contracts are found; written once, at deployment.
interface IAddressBook {
    /// @notice Names and addresses differ in number, or one of them is empty or given twice.
    error AddressBookInvalid();

    /// @notice The book holds no contract of this name.
    error AddressBookUnknown(bytes32 name);

    /// @notice Address of the contract `name` (ASCII, padded with zeros on the right); reverts when it is not in the book.
    function addressOf(bytes32 name) external view returns (address);

    /// @notice Every name in the book, in the order of deployment.
    function names() external view returns (bytes32[] memory);
}
