"""`python -m hfgen` is the `hfgen` command."""

from .cli import main

if __name__ == "__main__":
    main()
