"""`report.html`: everything that is known of an export on one page, for people who have to decide what to publish."""

from hermetiq.report.page import report as report
