"""A copy of a checkpoint whose files agree with its chat contract, and an account of every change."""

from hermetiq.repair.change import Change
from hermetiq.repair.given import template_at
from hermetiq.repair.mend import Mended, mend
from hermetiq.repair.rows import InitTags
from hermetiq.repair.run import Repair, Unrepaired, repair

__all__ = ["Change", "InitTags", "Mended", "Repair", "Unrepaired", "mend", "repair", "template_at"]
