"""Homomorphic engine: parameters, ciphertext container, kernels, and schemes for the owner of a key.

Start at `kernels`, or at `scheme` if you own a key. Everything but `bfv`, `scheme` and `opener` is integer arithmetic on
checked bytes and imports no homomorphic library; `isolated` opens blocks in a process of its own. Knows nothing of
ledgers, files or peers.

**Invariant:** a compute or verifier process imports everything here except `bfv`, `scheme` and `opener`.
"""
