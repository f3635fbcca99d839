"""The pipeline: data, training, transfer, and the graph that runs them in order."""
