"""Other protocols than OpenAI's: each becomes a completion, with the same auth and limits."""
