"""What several methods compute alike: per-example gradients, projections, embeddings, neighbours, warm-ups."""
