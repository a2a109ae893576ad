"""Recipes: how each runtime is started on an artifact so that it keeps the chat contract.

A sound file is still served wrong where a runtime guesses the template or the stops (U50), or stops at a text that the
answer merely mentions (U52). So what the contract knows is written down in each runtime's own words.
"""

from .run import Recipe as Recipe
from .run import recipes as recipes
from .run import save as save
from .run import seen_from as seen_from
