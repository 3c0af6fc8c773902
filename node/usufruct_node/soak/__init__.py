"""A network lived in at random, with faults, while its invariants are watched: `scripts/soak`.

`plan` draws what happens from a seed, `stage` has the people that it happens to and `faults` the processes,
`conductor` makes it happen. `books` says from the events alone what must never be, `watch` compares books, nodes and
chain all the time, `report` shows it.
"""
