"""What a model sees in calibration and verification, and the walk over its blocks."""
