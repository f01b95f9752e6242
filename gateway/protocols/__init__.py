"""Wire formats, one folder each: read into the canonical form, written from it, scanned while bytes pass through."""
