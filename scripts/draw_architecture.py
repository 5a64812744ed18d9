"""Draw docs/architecture.svg, the picture of the method in the README: `python scripts/draw_architecture.py`."""

from pathlib import Path

WIDTH, HEIGHT = 960, 410
MODEL, METHOD, TRAINING, INK = "#dbe7f5", "#fde6c8", "#e4f0dc", "#1f2933"
Point = tuple[float, float]


def box(x: float, y: float, width: float, height: float, title: str, *lines: str, fill: str) -> str:
    """A rounded box with a title and lines of text, all centred."""
    step = 17
    top = y + height / 2 - step * len(lines) / 2 + 5
    texts = [f'<text x="{x + width / 2}" y="{top}" class="title">{title}</text>']
    texts += [f'<text x="{x + width / 2}" y="{top + step * (k + 1)}">{line}</text>' for k, line in enumerate(lines)]
    dashed = ' stroke-dasharray="5 4"' if fill == TRAINING else ""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}"{dashed}/>' + "".join(texts)


def arrow(*points: Point, label: str = "", at: Point = (0, 0), dashed: bool = False) -> str:
    """A line through the points that ends in an arrow head, with a label at a position of its own."""
    path = "M" + " L".join(f"{x} {y}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="{path}" class="line"{dash}/>' + (f'<text x="{at[0]}" y="{at[1]}">{label}</text>' if label else "")


def picture() -> str:
    """The whole picture as SVG."""
    parts = [
        '<text x="44" y="109" class="title">recording</text>',
        arrow((84, 105), (108, 105)),
        box(110, 60, 150, 90, "Audio encoder", "CED, frozen", "+ LoRA", fill=MODEL),
        arrow((260, 105), (318, 105), label="h_a", at=(288, 97)),
        box(
            320, 40, 190, 130, "Two-Stream Adapter", "semantic: attention", "temporal: Conv1D, GRU,", "attention",
            "fusion: attention", fill=METHOD,
        ),
        arrow((510, 105), (598, 105), label="z_a", at=(552, 97)),
        box(600, 60, 150, 90, "Language model", "LLaMA-2 7B", "+ LoRA", fill=MODEL),
        '<text x="675" y="30">prompt, generated tokens</text>',
        arrow((675, 36), (675, 58)),
        arrow((750, 105), (813, 105), label="logits", at=(781, 97)),
        '<circle cx="827" cy="105" r="13" fill="white"/><text x="827" y="110" class="title">+</text>',
        arrow((840, 105), (872, 105)),
        '<text x="914" y="102" class="title">next</text><text x="914" y="118" class="title">token</text>',
        arrow((555, 105), (555, 225), (598, 225)),
        box(600, 190, 170, 70, "Token Guide", "distance of z_a to each", "token embedding", fill=METHOD),
        arrow((770, 225), (827, 225), (827, 120), label="bias", at=(798, 217)),
        arrow((555, 225), (555, 298), dashed=True),
        box(
            455, 300, 200, 90, "Cross-Modal Aligner", "Cauchy-Schwarz", "divergence, InfoNCE: L_cma", fill=TRAINING
        ),
        '<text x="345" y="341" class="title">caption</text>',
        arrow((378, 337), (453, 337), label="z_t", at=(414, 329), dashed=True),
        box(
            690, 300, 200, 90, "Cross entropies", "of the logits: L_dec", "of the guided logits: L_tg", fill=TRAINING
        ),
        arrow((856, 105), (856, 298), dashed=True),
        f'<rect x="30" y="300" width="16" height="14" fill="{MODEL}"/>'
        '<text x="54" y="312" class="left">pretrained</text>',
        f'<rect x="30" y="326" width="16" height="14" fill="{METHOD}"/>'
        '<text x="54" y="338" class="left">LAMB</text>',
        f'<rect x="30" y="352" width="16" height="14" fill="{TRAINING}" stroke-dasharray="5 4"/>'
        '<text x="54" y="364" class="left">LAMB, in training only</text>',
    ]  # fmt: skip
    style = (
        f"text {{ font: 13px sans-serif; fill: {INK}; text-anchor: middle }} .title {{ font-weight: bold }} "
        f".left {{ text-anchor: start }} rect, circle {{ stroke: {INK}; stroke-width: 1.2 }} "
        f".line {{ stroke: {INK}; stroke-width: 1.4; fill: none; marker-end: url(#head) }}"
    )
    head = (
        '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L10 5 L0 10 z" fill="{INK}"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f"<title>The architecture of LAMB</title><style>{style}</style><defs>{head}</defs>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white" style="stroke: none"/>' + "\n".join(parts) + "</svg>\n"
    )


if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "architecture.svg").write_text(picture(), encoding="utf-8")
