"""`usufruct-node` and `python -m usufruct_node`."""

from usufruct.entry import start


def main() -> None:
    """Entry point."""
    start("usufruct_node.cli")


if __name__ == "__main__":
    main()
