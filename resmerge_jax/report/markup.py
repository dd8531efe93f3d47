"""HTML and SVG elements as text; whatever is not markup yet is escaped here."""

import html
import re

# What XML cannot hold, not even escaped; a name may have it.
_FORBIDDEN = re.compile(
  '[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]'
)
_VOID = {'meta'}


class Markup(str):
  """Text that is markup: `tag` puts it in as it is, and escapes every other string."""

  __slots__ = ()


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
  """An element. `class_` is class, `stroke_width` stroke-width; None leaves one out."""
  written = ''.join(
    f' {key.rstrip("_").replace("_", "-")}="{_text(value)}"'
    for key, value in attributes.items()
    if value is not None
  )
  if name in _VOID:
    return Markup(f'<{name}{written}>')
  return Markup(f'<{name}{written}>{join(content)}</{name}>')


def join(content: object, between: str = '') -> Markup:
  """Strings and markup, or lists of them, as one markup."""
  if isinstance(content, Markup):
    return content
  if isinstance(content, list | tuple):
    return Markup(between.join(join(part) for part in content))
  return Markup(_text(content))


def _text(value: object) -> str:
  """Escaped; coordinates are given to a tenth of a pixel."""
  if isinstance(value, float):
    return f'{value:.1f}'.removesuffix('.0')
  return html.escape(_FORBIDDEN.sub('\ufffd', str(value)))
