// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {IAddressBook} from "./IAddressBook.sol";

/// @title AddressBook
/// @notice Names and addresses, fixed by the constructor.
contract AddressBook is IAddressBook {
    mapping(bytes32 name => address) private _addresses;
    bytes32[] private _names;

    constructor(bytes32[] memory names_, address[] memory addresses) {
        if (names_.length != addresses.length) revert AddressBookInvalid();
        for (uint256 i = 0; i < names_.length; ++i) {
            bool empty = names_[i] == bytes32(0) || addresses[i] == address(0);
            if (empty || _addresses[names_[i]] != address(0)) revert AddressBookInvalid();
            _addresses[names_[i]] = addresses[i];
        }
        _names = names_;
    }

    /// @inheritdoc IAddressBook
    function addressOf(bytes32 name) external view returns (address found) {
        found = _addresses[name];
        if (found == address(0)) revert AddressBookUnknown(name);
    }

    /// @inheritdoc IAddressBook
    function names() external view returns (bytes32[] memory) {
        return _names;
    }
}
