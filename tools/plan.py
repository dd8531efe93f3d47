"""Runs the command of resmerge_jax/cli/plan.py from a clone."""

from resmerge_jax.cli.plan import run

if __name__ == '__main__':
  run()
