"""From images to batches: shards, their exact order, and the reader. No ray, no mlflow, no training."""
