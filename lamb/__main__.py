"""`python -m lamb` is `lamb`."""

from lamb.cli.app import main

if __name__ == "__main__":  # the workers of `lamb bulk` import this file again
    main()
