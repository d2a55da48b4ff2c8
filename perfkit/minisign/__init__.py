"""Signatures and keys in the file format of minisign (https://jedisct1.github.io/minisign/)."""
