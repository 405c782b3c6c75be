"""The diffusion transformer, the tokenizer and the encoders of its conditions."""
