"""Data sets by name: CUB, Cars, SOP and In-Shop as the papers divide them; glyphs."""
