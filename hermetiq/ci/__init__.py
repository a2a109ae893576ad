"""What was verified, in the forms that continuous integration reads: JUnit XML and annotations of GitHub."""

from hermetiq.ci.github import workflow_commands as workflow_commands
from hermetiq.ci.junit import junit as junit
