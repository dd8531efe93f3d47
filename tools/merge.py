"""Runs the command of resmerge_jax/cli/merge.py from a clone."""

from resmerge_jax.cli.merge import run

if __name__ == '__main__':
  run()
