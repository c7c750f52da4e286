"""The `tollkeeper` command."""


def main() -> None:
    """Entry point."""
