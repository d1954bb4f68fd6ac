"""vitreous."""
