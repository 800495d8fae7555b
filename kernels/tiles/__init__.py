"""Operations on a block of logits, in plain torch, compiled torch and Triton."""
