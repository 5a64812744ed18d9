"""`python -m lamb` is `lamb`."""

from lamb.cli import main

main()
