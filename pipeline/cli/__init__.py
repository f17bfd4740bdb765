"""The `minivit` command: thin, one file per group."""
