"""Measurements of a trained model. One file per evaluation."""
