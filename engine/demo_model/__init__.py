"""Package data: the demo model that Manta serves when no other model is named."""
