"""A copy of a checkpoint whose files agree with its chat contract, and an account of every change."""

from hermetiq.repair.change import Change
from hermetiq.repair.rows import InitTags
from hermetiq.repair.run import Repair, Unrepaired, repair

__all__ = ["Change", "InitTags", "Repair", "Unrepaired", "repair"]
