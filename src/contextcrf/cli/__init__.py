"""The command line: `main` reads it, `commands` holds a function for each command."""
