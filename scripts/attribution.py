"""Write the attribution of the training recordings (title, author, licence, source) as the CSV that ships with a model.

python scripts/attribution.py ../shared/sounds ../shared/sounds-more lamb/bundled/tiny/ATTRIBUTION.csv
"""

import csv
import sys
from pathlib import Path

from lamb.data.sources import sounds

COLUMNS = ("title", "author", "licence", "source")


def main() -> None:
    *folders, output = map(Path, sys.argv[1:])
    rows = []
    for folder in folders:
        training = {clip.id for clip in sounds(folder) if clip.split == "train"}
        with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
            rows += [row for row in csv.DictReader(file) if Path(row["file"]).stem in training]
    # where a collection says from which repository a recording is, that is its source
    works = sorted({(row["title"], row["author"], row["licence"], row.get("origin") or row["source"]) for row in rows})
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(works)
    print(f"{len(rows)} training recordings of {len(works)} works -> {output}")


if __name__ == "__main__":
    main()
