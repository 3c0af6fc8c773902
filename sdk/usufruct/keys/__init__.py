"""Keys: encrypted keystores, an organisation's identities, HPKE envelopes, secrets of key domains.

The only package that reads or writes secrets at rest. Passphrases come from a file or a prompt, never from
the command line or the environment. Decrypts no ciphertext and signs no transaction.

**Invariant:** the node's keystore and the authority's are two files; a node never holds the authority's
key.
"""
