"""Writes a report: OUTPUT/report.html and OUTPUT/figures/*.svg."""

import pathlib

from resmerge_jax.diagnostics.diagnosis import Diagnosis
from resmerge_jax.report import figure, geometry, merged, page, sizes, spectral
from resmerge_jax.report.figure import Figure


def write(diagnosis: Diagnosis, output_dir: pathlib.Path) -> pathlib.Path:
  """Writes the report of one group, or of several to be compared, into a folder.

  The folder is made if need be; the same diagnosis gives the same bytes. Figures whose
  numbers the records do not have are not drawn, and the page says how to get them.

  Returns:
    The path of report.html. It needs no other file and no network.
  """
  groups = diagnosis.groups
  sections = (
    ('spectrum', 'Spectrum of the updates', spectral.figures(groups)),
    ('size', 'Size of the updates', sizes.figures(groups)),
    ('geometry', 'Heads against residuals', geometry.figures(groups)),
    ('merge', 'What the merge did', merged.figures(groups)),
  )
  pictures = output_dir / 'figures'
  pictures.mkdir(parents=True, exist_ok=True)
  for _, _, figures in sections:
    for one in figures:
      if isinstance(one, Figure):
        path = pictures / f'{one.name}.svg'
        path.write_text(figure.as_file(one), encoding='utf-8', newline='\n')
  report = output_dir / 'report.html'
  report.write_text(page.page(diagnosis, sections), encoding='utf-8', newline='\n')
  return report
