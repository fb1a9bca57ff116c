"""Between text and tokens: tokenizer, chat templates, detokenizing, stop strings."""
