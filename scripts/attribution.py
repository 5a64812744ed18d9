"""Write the attribution of the training recordings (title, author, licence, source) as the CSV that ships with a model.

python scripts/attribution.py ../shared/sounds lamb/bundled/tiny/ATTRIBUTION.csv
"""

import csv
import sys
from pathlib import Path

from lamb.data.sources import DEVELOPMENT_FOLDS


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["fold"] not in DEVELOPMENT_FOLDS]
    columns = ("title", "author", "licence", "source")
    works = sorted({tuple(row[column] for column in columns) for row in rows})
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(works)
    print(f"{len(rows)} training recordings of {len(works)} works -> {output}")


if __name__ == "__main__":
    main()
