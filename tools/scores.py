"""Runs the command of resmerge_jax/cli/scores.py from a clone."""

from resmerge_jax.cli.scores import run

if __name__ == '__main__':
  run()
