"""What this package uses of eth_account; imported when something is first signed or recovered, since that takes long."""

from usufruct.ledger.recursion import recursion_limit_kept

with recursion_limit_kept():
    from eth_account import Account
    from eth_account.messages import SignableMessage, encode_typed_data

__all__ = ["Account", "SignableMessage", "encode_typed_data"]
