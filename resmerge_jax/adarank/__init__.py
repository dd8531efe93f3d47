"""Learns which singular components of the experts to keep, from prompts: AdaRank.

Lee et al. 2025, AdaRank: Adaptive Rank Pruning for Enhanced Model Merging, arXiv
2503.22178. Letters beside those of types.py: S short side of a matrix (its number of
components), B prompts of one expert per step, T tokens of the longest prompt.
"""
