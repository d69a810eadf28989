"""How the page looks: its style and the parts of it that are HTML."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

FONTS = [
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Helvetica",
    "Arial",
    "sans-serif",
]  # none is fetched


def theme() -> gr.themes.Base:
    return gr.themes.Default(
        primary_hue="teal",
        neutral_hue="zinc",
        font=FONTS,
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
        radius_size="lg",
    ).set(
        body_background_fill="*neutral_50",
        block_label_background_fill="*block_background_fill",
        block_label_text_color="*neutral_500",
        block_title_text_color="*neutral_700",
        block_title_text_weight="600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        body_text_color_subdued="*neutral_500",
    )


CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; overflow-x: clip; }
.head h1 { font-size: 1.9rem; font-weight: 650; letter-spacing: -0.02em; margin: 0; }
.head p { margin: 0.2rem 0 0; color: var(--body-text-color-subdued); font-size: 1.05rem; }
.cut img { background: repeating-conic-gradient(#e4e4e7 0% 25%, #fafafa 0% 50%) 0 0 / 20px 20px; }
.live { display: flex; flex-direction: column; align-items: center; gap: 14px; padding: 18px; min-height: 400px;
  justify-content: center; background: white; border-radius: 10px; color: #3f3f46; }
.live img, .live video { width: min(100%, 320px); aspect-ratio: 1; }
.live .bar { width: min(100%, 460px); height: 8px; border-radius: 4px; background: #e4e4e7; overflow: hidden; }
.live .bar div { height: 100%; border-radius: 4px; background: #0d9488; }
.live .title { font-weight: 600; font-size: 1.05rem; }
.live .facts { color: #71717a; font-size: 0.92rem; text-align: center; font-variant-numeric: tabular-nums; }
.live table, .live table * { border: none !important; margin: 0 !important; }
button.lg { padding-inline: 6px !important; white-space: nowrap; }
.live td { padding: 1px 8px !important; text-align: left; }
.live .wait { width: 34px; height: 34px; border: 4px solid #e4e4e7; border-top-color: #0d9488; border-radius: 50%;
  animation: turn 1s linear infinite; }
@keyframes turn { to { transform: rotate(360deg); } }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; } }
.notes { font-size: 0.88rem; color: var(--body-text-color-subdued); }
.notes ul { margin: 4px 0 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
footer { font-size: 0.85rem; }
"""

HEAD = """<div class="head"><h1>Propeller</h1>
<p>A picture or a sentence in, one textured 3D asset out. Watch it being made, stop whenever it is good enough.</p>
</div>"""

IDLE = """<div class="live"><div class="title">Drop a picture or type a sentence, then Make.</div>
<div class="facts">What is being made turns here while it is optimised.</div></div>"""


def waiting(title: str) -> str:
    return f'<div class="live"><div class="wait"></div><div class="title">{html.escape(title)}</div></div>'


def live(
    picture: NDArray[np.uint8], title: str, share: float, facts: Sequence[str], alt: str = "the scene now"
) -> str:
    """The scene now [S, S, 3], how far it is, 0..1, and what is said of that."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=90)
    coded = base64.b64encode(data.getvalue()).decode()
    return (
        f'<div class="live"><img src="data:image/jpeg;base64,{coded}" alt="{alt}">'
        f'<div class="title">{html.escape(title)}</div>'
        f'<div class="bar"><div style="width:{100 * share:.1f}%"></div></div>'
        f'<div class="facts">{html.escape(" · ".join(facts))}</div></div>'
    )


def done(film: Path | None, facts: Sequence[tuple[str, str]]) -> str:
    """What was made, turning, and what a summary says of it."""
    shown = (
        f'<video src="gradio_api/file={quote(str(film))}" autoplay loop muted playsinline></video>'
        if film
        else ""
    )
    rows = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in facts)
    return f'<div class="live done">{shown}<table class="facts">{rows}</table></div>'


def notes(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f'<div class="notes"><ul>{"".join(f"<li>{html.escape(line)}</li>" for line in lines)}</ul></div>'
