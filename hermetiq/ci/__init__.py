"""What was verified, in the forms that continuous integration reads: JUnit XML and annotations of GitHub."""

from hermetiq.ci.annotations import annotations as annotations
from hermetiq.ci.junit import junit as junit
