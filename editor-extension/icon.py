"""Draws icon.png: an M worked out of noise, as a mezzotint is. Needs Pillow: `python icon.py`."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

SIZE, CELLS, SCALE = 256, 16, 4  # drawn larger, then reduced: smooth edges
PLATE, INK, NOISE = (27, 27, 31), (240, 196, 120), (92, 86, 80)
LETTER = """
................
................
................
..##........##..
..###......###..
..####....####..
..##.##..##.##..
..##..####..##..
..##...##...##..
..##........##..
..##........##..
..##........##..
..##........##..
................
................
................
""".split()


def main() -> None:
    rng = random.Random(7)
    image = Image.new("RGBA", (SIZE * SCALE, SIZE * SCALE))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 0, SIZE * SCALE - 1, SIZE * SCALE - 1), 48 * SCALE, fill=PLATE)
    cell = SIZE * SCALE / CELLS
    for row in range(1, CELLS - 1):
        for column in range(1, CELLS - 1):
            settled = rng.random() < (column + 1) / CELLS * 1.5 - 0.15
            inked = LETTER[row][column] == "#"
            if settled and not inked:
                continue
            size = 0.82 if settled else rng.uniform(0.25, 0.8)
            colour = INK if inked and (settled or rng.random() < 0.4) else NOISE
            x, y, half = (column + 0.5) * cell, (row + 0.5) * cell, size * cell / 2
            draw.rounded_rectangle((x - half, y - half, x + half, y + half), half / 3, fill=colour)
    icon = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    icon.save(Path(__file__).with_name("icon.png"), optimize=True)


if __name__ == "__main__":
    main()
