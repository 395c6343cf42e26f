"""What every package may use: errors, files, locks, progress, provenance, the machine, resizing, tables."""
