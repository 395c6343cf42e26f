"""`python -m contextcrf`, the command line."""

from contextcrf.cli.main import main

if __name__ == "__main__":
    main()
