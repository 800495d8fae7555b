"""Trainers on plain torch and transformers. Import the submodule you need; this is empty."""
