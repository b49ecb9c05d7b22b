"""`python -m topreco`."""

from topreco.cli import main

main()
