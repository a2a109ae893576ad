"""Specs of what to make, and ggml's own block quantizer."""
