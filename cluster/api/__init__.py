"""The OpenAI-compatible API without HTTP: bodies, rules, and how answers are put together."""
