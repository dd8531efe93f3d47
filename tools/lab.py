"""Runs the command of resmerge_jax/cli/lab.py from a clone."""

from resmerge_jax.cli.lab import run

if __name__ == '__main__':
  run()
