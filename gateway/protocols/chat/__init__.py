"""OpenAI chat completions, in all the dialects that other providers speak."""
