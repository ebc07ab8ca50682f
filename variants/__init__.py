"""The variants, one per file; the file's stem, with hyphens, is the variant's name."""
