"""Runs the command of resmerge_jax/cli/methods.py from a clone."""

from resmerge_jax.cli.methods import run

if __name__ == '__main__':
  run()
