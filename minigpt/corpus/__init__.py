"""From text files to rows: readers, records, splits, cleaning, cutting, duplicates, row files."""
