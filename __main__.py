"""`python -m tilewright`: the command line."""

from .compiler.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
