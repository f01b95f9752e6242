"""Ollama's own protocol: `/api/chat` and `/api/embed`; answers of `/api/generate` are read as well."""
