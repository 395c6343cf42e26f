"""The command line: `main` parses the arguments, and `commands` has one function per command."""
