"""Runs the command of resmerge_jax/cli/verify.py from a clone."""

from resmerge_jax.cli.verify import run

if __name__ == '__main__':
  run()
