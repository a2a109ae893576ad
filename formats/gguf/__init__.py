"""GGUF files: which tensors, in which type, with what metadata, and the streaming writer."""
