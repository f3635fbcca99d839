"""From fine-tuned models to numbers that can be trusted: protocols, results, statistics."""
