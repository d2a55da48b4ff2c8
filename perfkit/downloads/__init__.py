"""Get bytes: from one URL, or from a hundred thousand, into files that are whole or absent."""
