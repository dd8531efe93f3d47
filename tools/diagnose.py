"""Runs the command of resmerge_jax/cli/diagnose.py from a clone."""

from resmerge_jax.cli.diagnose import run

if __name__ == '__main__':
  run()
