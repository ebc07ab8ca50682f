"""The variants: one file each; a file's stem, with hyphens, is the variant's name."""
