"""`python -m hermetiq`, for environments whose scripts are not on the path."""

from hermetiq.cli import main

main()
