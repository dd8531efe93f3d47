"""Configurations of mergekit (0.1.5), told in the terms of this package."""
