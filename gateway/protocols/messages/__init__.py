"""Anthropic's Messages API, as applications speak it and as upstreams do, and its counting of tokens."""
