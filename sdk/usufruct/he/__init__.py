"""Homomorphic engine: parameters, ciphertext container, kernels, and BFV for the owner of a key.

Start at `kernels`. `parameters`, `container`, `residues` and `kernels` are integer arithmetic on checked
bytes and import no homomorphic library; `bfv` alone imports TenSEAL. Knows nothing of ledgers, files or
peers.

**Invariant:** a compute or verifier process imports everything here except `bfv`.
"""
