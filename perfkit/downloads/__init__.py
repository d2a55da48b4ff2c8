"""Downloads from one URL, or a hundred thousand, into files that are complete or absent."""
