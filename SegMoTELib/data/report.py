"""The report of a curation as one HTML file: counts, licences, bad files, thumbnails of the kept and the rejected."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image
from skimage.segmentation import find_boundaries

THUMBNAIL = 160  # pixels of the longer side
CONTOUR = (255, 64, 64)

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Curation report</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0 1.5em}
th,td{border-bottom:1px solid #ddd;padding:.25em .8em;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.thumbs{display:flex;flex-wrap:wrap;gap:.8em} figure{margin:0;width:170px}
img{max-width:160px;border-top:4px solid #999} .kept img{border-color:#2a9d5c} .rejected img{border-color:#d0453e}
figcaption{font-size:12px;line-height:1.35;overflow-wrap:anywhere}
code{overflow-wrap:anywhere}
</style></head><body>
<h1>Curation report</h1>
<p>{{ summary }}</p>
<p>Every mask with every measurement is in <code>review.csv</code>. A rejected mask is background in the written label
map; the source files are unchanged.</p>
<h2>Data sets</h2>
<table><tr><th>data set</th><th>modality</th><th>licence</th><th>source</th><th class=n>images</th>
<th class=n>masks kept</th><th class=n>masks rejected</th><th class=n>kept</th><th class=n>train / val / test</th></tr>
{% for s in sets %}<tr><td>{{ s.code }}</td><td>{{ s.modality }}</td><td>{{ s.licence }}</td><td>{{ s.source }}</td>
<td class=n>{{ s.images }}</td><td class=n>{{ s.kept }}</td><td class=n>{{ s.rejected }}</td>
<td class=n>{{ s.share }}</td><td class=n>{{ s.splits }}</td></tr>
{% endfor %}</table>
<h2>Reasons</h2>
{% if reasons %}<p>A mask may have several.</p>
<table><tr><th>reason</th><th class=n>masks</th></tr>
{% for kind, count in reasons %}<tr><td>{{ kind }}</td><td class=n>{{ count }}</td></tr>{% endfor %}</table>
{% else %}<p>Nothing was rejected.</p>{% endif %}
{% for code, label, refused, total in faint %}<p><strong>{{ code }}, {{ label }}:</strong> {{ refused }} of {{ total }}
masks were rejected because their border follows nothing that can be seen. Either they are shifted, or the object has no
visible edge: look at them below. If they are right, curate again with <code>--min-border 0</code>.</p>{% endfor %}
<h2>Thresholds</h2>
{% if thresholds %}<table>{% for name, value in thresholds %}<tr><td>{{ name }}</td><td class=n>{{ value }}</td></tr>
{% endfor %}</table>{% else %}<p>The review was switched off: masks were neither measured nor judged.</p>{% endif %}
<h2>Files that could not be used</h2>
{% if bad_files %}<table><tr><th>file</th><th>why</th></tr>
{% for path, reason in bad_files %}<tr><td><code>{{ path }}</code></td><td>{{ reason }}</td></tr>
{% endfor %}</table>{% else %}<p>None.</p>{% endif %}
<h2>Duplicates between patients or volumes</h2>
{% if duplicates %}<table><tr><th>image</th><th>and</th><th>what was done</th></tr>
{% for a, b, done in duplicates %}<tr><td>{{ a }}</td><td>{{ b }}</td><td>{{ done }}</td></tr>{% endfor %}</table>
{% else %}<p>None found.</p>{% endif %}
{% for title, css, total, thumbs in galleries %}
<h2>{{ title }}</h2><p>Showing {{ thumbs|length }} of {{ total }}.</p>
<div class="thumbs {{ css }}">{% for t in thumbs %}<figure><img alt="" src="data:image/jpeg;base64,{{ t.jpeg }}">
<figcaption>{{ t.caption }}{% for reason in t.reasons %}<br>{{ reason }}{% endfor %}</figcaption></figure>
{% endfor %}</div>{% endfor %}
</body></html>
"""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture with the contour of one mask: base64 JPEG, what it shows, and what spoke against it."""

    jpeg: str
    caption: str
    reasons: tuple[str, ...] = ()


@dataclass
class Report:
    """What the report tells; the fields are rows of its tables.

    Attributes:
        summary: one sentence.
        sets: dicts of code, modality, licence, source, images, kept, rejected, share, splits.
        reasons: (kind, number of masks).
        thresholds: (name, value); empty when the review was off.
        bad_files: (path, reason).
        duplicates: (image, other image, what was done).
        faint: (data set, label, masks refused for their border, masks in all).
        galleries: (title, "kept" or "rejected", number of masks in all, thumbnails).
    """

    summary: str
    sets: list[dict] = field(default_factory=list)
    reasons: list[tuple[str, int]] = field(default_factory=list)
    thresholds: list[tuple[str, float]] = field(default_factory=list)
    bad_files: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str, str]] = field(default_factory=list)
    faint: list[tuple[str, str, int, int]] = field(default_factory=list)
    galleries: list[tuple[str, str, int, list[Thumbnail]]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the HTML file; it needs no other file and no network."""
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        path.write_text(environment.from_string(TEMPLATE).render(vars(self)), encoding="utf-8")


def thumbnail(image: np.ndarray, mask: np.ndarray, caption: str, reasons: tuple[str, ...] = ()) -> Thumbnail:
    """Draw a mask's contour on a small copy of its image.

    Args:
        image: uint8 (H, W) or (H, W, 3).
        mask: bool (H, W).
        caption: what it is.
        reasons: what speaks against it.
    """
    height, width = mask.shape
    scale = THUMBNAIL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.array(Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BILINEAR))
    outline = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    small[find_boundaries(outline, mode="inner")] = CONTOUR
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, format="JPEG", quality=80)
    return Thumbnail(base64.b64encode(buffer.getvalue()).decode("ascii"), caption, reasons)
