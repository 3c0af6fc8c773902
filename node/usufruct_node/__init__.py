"""What must keep running at a member organisation: chain follower, index, peers, roles, HTTP interface.

Start at `app.Node`, which wires everything; `roles` is what a node does for others, `index` what it knows, `peers` whom it
talks to, `chain` the embedded development chain.
"""
