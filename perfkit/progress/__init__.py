"""Progress: meters that count bytes and files, and the displays that draw them."""
