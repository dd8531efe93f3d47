"""Runs the command of resmerge_jax/cli/adarank.py from a clone."""

from resmerge_jax.cli.adarank import run

if __name__ == '__main__':
  run()
