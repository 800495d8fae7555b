"""The clipped policy loss over [B, T], in one pass."""
