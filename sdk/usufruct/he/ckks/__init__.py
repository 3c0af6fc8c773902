"""CKKS, an optional plug-in: cubic scores of real-valued features, approximate, evaluated by SEAL.

In the order of a job: `parameters`, `container` (canonical bytes), `owner` (secret, sealing, evaluation key),
`kernel` (pre-encoded models, the record, the bounds), `evaluate`, `flooding` and `owner.open_slots`; `isolated` and
`worker` run the last two in processes of their own.

Nothing of the network imports this package; a contract of the import linter holds that. Why it is off is in
`docs/engine.md`: computing needs SEAL, results are approximate, and every opening needs flooding noise.
"""
