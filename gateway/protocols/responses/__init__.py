"""OpenAI's Responses API, as applications speak it and as an upstream wire."""
