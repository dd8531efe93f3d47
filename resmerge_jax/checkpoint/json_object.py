"""JSON objects, strictly: what is wrong with the text is said in one phrase."""

import json
from typing import Any


def load_json_object(
  text: bytes, duplicates: list[str] | None = None
) -> dict[str, Any]:
  """The JSON object in `text`; names that occur twice are appended to `duplicates`.

  Raises:
    ValueError: not UTF-8, not JSON, or not an object; the message says which.
  """

  def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if duplicates is not None and len(found) < len(items):
      seen: set[str] = set()
      duplicates.extend(n for n, _ in items if n in seen or seen.add(n))  # type: ignore[func-returns-value]
    return found

  try:
    value = json.loads(text.decode('utf-8'), object_pairs_hook=pairs)
  except UnicodeDecodeError as error:
    raise ValueError(f'not UTF-8 ({error.reason} at byte {error.start})') from error
  except RecursionError as error:
    raise ValueError('not JSON of a sensible depth') from error
  except ValueError as error:
    raise ValueError(f'not JSON ({error})') from error
  if not isinstance(value, dict):
    raise ValueError(f'a JSON {type(value).__name__}, not an object')
  return value
