"""Report known vulnerabilities of what a user installs; reads the JSON of pip-audit, and fails if there are any.

It says which packages no data was found for: a mirror of PyPI may have none at all.
"""

from __future__ import annotations

import json
import sys

text = sys.stdin.read()
found = json.loads(text)["dependencies"] if text else []
unknown = [each["name"] for each in found if "skip_reason" in each and each["name"] != "perfkit"]
flaws = [(each, flaw) for each in found for flaw in each.get("vulns", ())]
lines = [
    f"{each['name']} {each['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no release'}"
    for each, flaw in flaws
]
if unknown or not found:
    lines.append(f"NOT AUDITED, for lack of data: {', '.join(unknown) or 'everything'}")
lines.append(f"{len(flaws)} known vulnerabilities")
sys.stdout.write("".join(f"{line}\n" for line in lines))
sys.exit(bool(flaws))
