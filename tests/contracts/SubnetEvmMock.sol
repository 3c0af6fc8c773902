// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {INativeMinter, ROLE_NONE, ROLE_ENABLED, ROLE_ADMIN, ROLE_MANAGER} from "../../contracts/ISubnetEvm.sol";

/// @dev Subnet-EVM's precompiles in Solidity, to be placed at their addresses. As v0.8.0 has them: the role of an account
/// lies in the slot that is its address, a refusal takes all the gas and says nothing, and a mint makes coin out of
/// nothing (here: out of a balance that the test gives this address).
contract SubnetEvmMock is INativeMinter {
    function setAdmin(address account) external {
        _set(account, ROLE_ADMIN);
    }

    function setManager(address account) external {
        _set(account, ROLE_MANAGER);
    }

    function setEnabled(address account) external {
        _set(account, ROLE_ENABLED);
    }

    function setNone(address account) external {
        _set(account, ROLE_NONE);
    }

    function mintNativeCoin(address account, uint256 amount) external {
        _require(_read(msg.sender) != ROLE_NONE);
        emit NativeCoinMinted(msg.sender, account, amount);
        (bool done, ) = account.call{ value: amount }("");
        _require(done);
    }

    function readAllowList(address account) external view returns (uint256) {
        return _read(account);
    }

    function _set(address account, uint256 to) private {
        uint256 role = _read(msg.sender);
        uint256 from = _read(account);
        bool plain = from <= ROLE_ENABLED && to <= ROLE_ENABLED;
        _require(role == ROLE_ADMIN || (role == ROLE_MANAGER && plain));
        emit RoleSet(to, account, msg.sender, from);
        assembly {
            sstore(account, to)
        }
    }

    function _read(address account) private view returns (uint256 role) {
        assembly {
            role := sload(account)
        }
    }

    function _require(bool held) private pure {
        if (held) return;
        assembly {
            invalid()
        }
    }
}

/// @dev Stands where a precompile should: takes every call and does nothing.
contract DeafList {
    uint256 private immutable ANSWER;

    constructor(uint256 answer) {
        ANSWER = answer;
    }

    function readAllowList(address) external view returns (uint256) {
        return ANSWER;
    }

    fallback() external {}
}
