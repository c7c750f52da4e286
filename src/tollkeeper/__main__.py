"""`python -m tollkeeper` is the same as the `tollkeeper` command."""

from tollkeeper.cli import main

main()
