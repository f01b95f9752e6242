"""The applications' surfaces: one file each. ASGI in, ASGI out."""
