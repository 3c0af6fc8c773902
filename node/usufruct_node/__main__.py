"""`python -m usufruct_node`: the same as `usufruct-node`."""

from usufruct_node.cli import main

if __name__ == "__main__":
    main()
