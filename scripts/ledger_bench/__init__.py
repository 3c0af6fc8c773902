"""Parts of `scripts/bench ledger`: a ledger's history to index, transactions to send, proofs to check."""
