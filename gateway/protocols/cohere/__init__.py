"""Cohere's protocol: `/v2/chat` and `/v2/embed`; answers of `/v1/chat` are read as well."""
