"""hermetiq: ship a chat model quantized, and prove that it is still the same chat model.

The package is light to import: the command line answers `--help` without torch. Import what you
need from its modules (`hermetiq.checkpoint`, `hermetiq.chat`, `hermetiq.pipeline`, `hermetiq.verify`).
"""

__version__ = "0.1.0"
