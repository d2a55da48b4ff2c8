#!/usr/bin/env bash
# glibc's getaddrinfo (seen with 2.36, Debian 12), which nearly all programs ask, with a name that has three addresses
# and a name server that puts another one first in each answer, as they do to spread load over mirrors.
# Most would guess: each host, or each run, begins with another mirror, by IPv6 as by IPv4. A mirror that is added to
# the name takes its share.
# Seen: by IPv4 it is so. IPv6 addresses are sorted: first comes the one that has the most bits, from the left, in common
# with the host's own address (RFC 6724 section 6, rule 9), whatever the name server says. So all hosts of a network, and
# mostly all of a part of the world, begin with the same mirror, each time, and the others get nothing from them. A
# mirror that is added to the name can take the load of all, or none. A test by dig, or without IPv6, shows nothing. The
# load has to be spread over names, by the client, or behind one address.
# Needs root, for a network and a resolv.conf of its own; ip and unshare (Debian: iproute2, util-linux).
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "root is needed" >&2; exit 1; }
for program in ip unshare; do
    [ -n "$(command -v "$program")" ] || { echo "$program is missing" >&2; exit 1; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/ask.py" <<'END'
import collections, ipaddress, platform, socket, struct, subprocess, threading

MIRRORS = {
    socket.AF_INET: ("203.0.113.7", "198.51.100.7", "192.0.2.7"),
    socket.AF_INET6: ("2001:db8:77::7", "2400:db8::7", "2a01:db8::7"),
}
HOSTS = ("2001:db8:1::3", "2600:db8:1::3", "2a01:db8:1::3")
FAMILIES = {1: socket.AF_INET, 28: socket.AF_INET6}  # types of records: A, AAAA
ASKED = 30
first = collections.Counter()


def answer(query):
    """The addresses of the type that is asked for, each of them first in turn."""
    end = query.index(0, 12) + 5  # of the question, which begins at 12
    (kind,) = struct.unpack(">H", query[end - 4 : end - 2])
    mirrors = MIRRORS[FAMILIES[kind]]
    begin = sum(first[mirror] for mirror in mirrors) % len(mirrors)
    first[mirrors[begin]] += 1
    records = b""
    for mirror in mirrors[begin:] + mirrors[:begin]:
        address = ipaddress.ip_address(mirror).packed
        records += struct.pack(">HHHLH", 0xC00C, kind, 1, 0, len(address)) + address
    return query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(mirrors), 0, 0) + query[12:end] + records


def serve(name_server):
    while True:
        query, sender = name_server.recvfrom(4096)
        name_server.sendto(answer(query), sender)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


def tried_first(family):
    """How often each mirror is the first that a program would try, and the first in the name server's answer."""
    first.clear()
    tried = collections.Counter()
    for _ in range(ASKED):
        results = socket.getaddrinfo("mirrors.example.org", 443, family, socket.SOCK_STREAM)
        assert {result[4][0] for result in results} == set(MIRRORS[family])
        tried[results[0][4][0]] += 1
    assert set(first.values()) == {ASKED // 3}
    return dict(tried)


ip("link", "set", "lo", "up")
ip("address", "add", "10.1.2.3/24", "dev", "lo")
ip("route", "add", "default", "dev", "lo", "src", "10.1.2.3")
name_server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
name_server.bind(("127.0.0.1", 53))
threading.Thread(target=serve, args=(name_server,), daemon=True).start()
print(*platform.libc_ver())
found = {"10.1.2.3": tried_first(socket.AF_INET)}
for host in HOSTS:
    ip("-6", "address", "add", f"{host}/64", "dev", "lo", "nodad")
    ip("-6", "route", "add", "default", "dev", "lo", "src", host)
    found[host] = tried_first(socket.AF_INET6)
    ip("-6", "route", "delete", "default", "dev", "lo")
    ip("-6", "address", "delete", f"{host}/64", "dev", "lo")
for host, tried in found.items():
    print(f"a host with {host}: of {ASKED} runs, {', '.join(f'{count} try {to} first' for to, count in tried.items())}")
assert found["10.1.2.3"] == {mirror: ASKED // 3 for mirror in MIRRORS[socket.AF_INET]}, "this has changed"
assert found["2001:db8:1::3"] == {"2001:db8:77::7": ASKED}, "this has changed"
assert found["2600:db8:1::3"] == {"2400:db8::7": ASKED}, "this has changed"
assert found["2a01:db8:1::3"] == {"2a01:db8::7": ASKED}, "this has changed"
END
printf 'nameserver 127.0.0.1\n' >"$folder/resolv.conf"
printf 'hosts: dns\n' >"$folder/nsswitch.conf"
unshare --net --mount bash -euc '
    mount --bind "$1/resolv.conf" /etc/resolv.conf
    mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
    python3 "$1/ask.py"
' - "$folder"
