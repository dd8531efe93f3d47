"""A diagnosis as pictures and as one page to read: `write`."""

from resmerge_jax.report.folder import write

__all__ = ['write']
