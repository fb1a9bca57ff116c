"""One replica: what it decides (scheduler, blocks) and what it computes (model, sampler)."""
