"""Decisions: pure functions over the configuration, a request's facts and a health snapshot."""
