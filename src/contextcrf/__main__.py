"""`python -m contextcrf`, the command line."""

from contextcrf.cli import main

if __name__ == "__main__":
    main()
