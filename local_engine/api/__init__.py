"""The engine's front door: HTTP, OpenAI's formats, checks before anything is queued."""
