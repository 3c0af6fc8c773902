"""Records `finality.json` from running validators: `python tests/vectors/record_finality.py CONSORTIUM_JSON > FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from usufruct.ledger import PROFILES, Endpoints
from usufruct.ledger.finality import fetch_finality
from usufruct.ledger.network import FinalityPin, Validator, validator_order


def main() -> None:
    running = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    validators = [Validator(key=v["bls_public_key"], weight=v["weight"]) for v in running["validators"]]
    pin = FinalityPin(
        network_id=running["network_id"],
        chain=running["blockchain_id_hex"],
        validators=tuple(sorted(validators, key=lambda v: validator_order(v.key))),
    )
    endpoint = Endpoints(
        running["rpc_urls"],
        profile=PROFILES["subnet-evm"],
        chain_id=running["chain_id"],
        genesis_hash=running["genesis_hash"],
    )
    blocks = []
    for number in (0, 1, endpoint.finalised().number):
        block = endpoint.call("eth_getBlockByNumber", hex(number), False)
        receipts = endpoint.call("eth_getBlockReceipts", hex(number))
        block_hash = bytes.fromhex(block["hash"][2:])
        proof = fetch_finality(endpoint, PROFILES["subnet-evm"], pin, block_hash) if number else None
        blocks.append({"block": block, "receipts": receipts, "proof": proof.payload.hex() if proof else None})
    json.dump(
        {
            "source": "five validators on Subnet-EVM v0.8.0 and AvalancheGo v1.14.0, `scripts/consortium up`",
            "remake": "python tests/vectors/record_finality.py DIRECTORY/consortium.json",
            "pin": pin.model_dump(mode="json"),
            "blocks": blocks,
        },
        sys.stdout,
        indent=1,
    )


if __name__ == "__main__":
    main()
