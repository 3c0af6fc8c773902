"""`usufruct` and `python -m usufruct`."""

from usufruct.entry import start


def main() -> None:
    """Entry point."""
    start("usufruct.cli")


if __name__ == "__main__":
    main()
