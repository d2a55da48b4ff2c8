#!/usr/bin/env bash
# Linux (seen on 6.18), overlayfs with its defaults, as under Docker and Kubernetes.
# Most would guess: a hard link costs a directory entry, however large the file is.
# Seen: a link to a file that came with the image copies the whole file into the container's own layer first; a rename
# does so too, and the image keeps its copy. An update that keeps the old file by a hard link, so that it can be taken
# back, writes each old file that it replaces once more, and needs the space for it.
# Needs unprivileged user namespaces, or root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/own"
mount=(unshare --mount)
[ "$(id -u)" = 0 ] || mount=(unshare --user --map-root-user --mount)
uname -r
"${mount[@]}" bash -euo pipefail -s "$folder" <<'END'
mount -t tmpfs -o size=256m tmpfs "$1/own"
cd "$1/own"
mkdir image layer work tree
head -c 32M /dev/urandom >image/linked
head -c 32M /dev/urandom >image/renamed
mount -t overlay -o lowerdir=image,upperdir=layer,workdir=work overlay tree
before=$(du -sk layer | cut -f1)
ln tree/linked tree/kept
link=$(($(du -sk layer | cut -f1) - before))
mv tree/renamed tree/moved
rename=$(($(du -sk layer | cut -f1) - before - link))
echo "a link to 32 MiB wrote $link KiB, a rename of 32 MiB wrote $rename KiB"
[ "$link" -ge 32768 ] && [ "$rename" -ge 32768 ] || { echo "this has changed" >&2; exit 1; }
END
