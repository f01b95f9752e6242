"""Wire formats: one file each. Encode a request for an upstream, read usage and finish out of its answer."""
