"""Log-probs straight from hidden states and the head's weight."""
