"""OpenAI legacy text completions."""
