"""Runs the command of resmerge_jax/cli/apply_recipe.py from a clone."""

from resmerge_jax.cli.apply_recipe import run

if __name__ == '__main__':
  run()
