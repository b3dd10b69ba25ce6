"""What the commands share: parser and exit codes, config flags, progress bar."""
