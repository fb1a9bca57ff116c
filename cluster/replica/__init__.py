"""What a replica decides about itself: its shard, its leave, whether its engine still moves."""
