"""The scoring engine: admission, token-budget batching, and the forward threads of the devices."""
