"""Wire formats, one folder each: read into the canonical form, written out of it, or scanned while bytes pass through."""
