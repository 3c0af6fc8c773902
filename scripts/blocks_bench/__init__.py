"""Parts of `scripts/bench blocks`: the processes that serve and those that are measured."""
