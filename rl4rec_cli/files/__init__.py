"""Files: read with care, written whole, locked, named."""
