"""The packages that people quantize with otherwise, each in an environment of its own under `.peers/`."""
