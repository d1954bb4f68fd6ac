"""VTAB-1k (arXiv:1910.04867) without TensorFlow: its 19 tasks, read from the original files or from common copies."""
