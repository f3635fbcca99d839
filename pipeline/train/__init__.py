"""One training or scoring, on one rank or on many: no ray, no mlflow. Start at worker.py, read loop.py."""
