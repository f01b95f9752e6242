"""OpenAI's embeddings protocol, which many servers speak."""
