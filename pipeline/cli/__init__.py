"""The `minivit` command, one file per group; the work is done elsewhere."""
