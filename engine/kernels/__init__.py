"""What the forward pass computes by hand: packed linears, fused element-wise steps, paged attention."""
