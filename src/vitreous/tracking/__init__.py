"""Seeing a run while it trains: TensorBoard's event files always, other trackers by name."""
