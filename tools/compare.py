"""Runs the command of resmerge_jax/cli/compare.py from a clone."""

from resmerge_jax.cli.compare import run

if __name__ == '__main__':
  run()
