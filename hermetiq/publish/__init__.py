"""Releases on the Hugging Face Hub: a plan, a guard, a card, and an upload that is a transaction."""
