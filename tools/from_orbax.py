"""Runs the command of resmerge_jax/cli/from_orbax.py from a clone."""

from resmerge_jax.cli.from_orbax import run

if __name__ == '__main__':
  run()
