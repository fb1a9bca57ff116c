"""Who asks: principals and what they may do."""
