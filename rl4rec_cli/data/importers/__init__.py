"""Importers: raw files of published datasets, and of one's own, into dataset folders. One module for each source."""
