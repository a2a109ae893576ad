"""Releases on the Hugging Face Hub: a plan, a guard, a card, and an upload that is a transaction."""

from .hub import Hub as Hub
from .plan import Layout as Layout
from .run import Job as Job
from .run import Published as Published
from .run import prepare as prepare
from .run import publish as publish
