"""Runs the command of resmerge_jax/cli/to_orbax.py from a clone."""

from resmerge_jax.cli.to_orbax import run

if __name__ == '__main__':
  run()
