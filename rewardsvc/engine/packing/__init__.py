"""Padding-free batches: sequences one behind another, each shared prefix computed once."""
