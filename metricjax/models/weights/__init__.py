"""Weights from files of others: `files` reads them, `names` translates their names."""
