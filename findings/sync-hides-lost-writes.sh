#!/usr/bin/env bash
# Linux (seen on 6.18), ext4 and btrfs on a device that takes less than its size, as thin-provisioned volumes, images in a
# full store and counterfeit cards do; here a sparse image in a small tmpfs. GNU coreutils (seen with 9.1).
# Most would guess: `cp FILE /mnt && sync && umount /mnt` ends with 0 only if the file is on the device; a write error
# that comes later than cp is reported by sync, or at the latest by umount.
# Seen: all three end with 0, and after the next mount the file is gone; only the kernel's log tells. sync(2) returns
# nothing, as POSIX has it, and umount does not pass on what went wrong while it wrote. A compare before the umount reads
# from memory, so it need not see it either. fsync() fails as it should: give sync the file's name (`sync FILE` calls
# fsync, `sync -f` syncfs). os.sync() of Python is sync(2), too.
# Needs root, for file systems on a loop device.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
folder=$(mktemp -d)
trap 'umount -q "$folder/mounted" || true; umount -q "$folder/store" || true; rm -rf "$folder"' EXIT
mkdir "$folder/mounted" "$folder/store"
uname -r
sync --version | sed -n 1p
mount -t tmpfs -o size=64M none "$folder/store"
head -c 128M /dev/urandom >"$folder/file"
changed() {
    echo "$kind: this has changed"
    exit 1
}
for kind in ext4 btrfs; do
    for how in "sync" "sync FILE"; do
        truncate -s 512M "$folder/store/disk"
        mkfs.$kind -q "$folder/store/disk" >/dev/null 2>&1
        mount -o loop "$folder/store/disk" "$folder/mounted"
        copied=0 synced=0 unmounted=0
        cp "$folder/file" "$folder/mounted/copy" || copied=$?
        case $how in
            sync) sync 2>"$folder/said" || synced=$? ;;
            *) sync "$folder/mounted/copy" 2>"$folder/said" || synced=$? ;;
        esac
        umount "$folder/mounted" || unmounted=$?
        echo "$kind: cp ends with $copied, $how with $synced, umount with $unmounted"
        mount -o loop "$folder/store/disk" "$folder/mounted"
        if cmp -s "$folder/file" "$folder/mounted/copy"; then
            echo "the copy is whole"
            changed
        fi
        [ -e "$folder/mounted/copy" ] && found="of other bytes" || found="gone"
        echo "  after the next mount the copy is $found"
        umount "$folder/mounted"
        rm "$folder/store/disk"
        [ $copied$unmounted = 00 ] || changed
        case $how in
            sync) [ $synced = 0 ] || changed ;;
            *) [ $synced != 0 ] || changed ;;
        esac
    done
done
