"""The corpus, the tokenizer and the training of the demo model."""
