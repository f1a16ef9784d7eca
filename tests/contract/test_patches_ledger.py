"""The ledger of patches names exactly what the plugin changes."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEDGER = (ROOT / "runtime_patches" / "PATCHES.md").read_text()
CODE = "\n".join(
    path.read_text()
    for path in (
        *(ROOT / "runtime_patches/leanmoe_runtime").rglob("*.py"),
        *(ROOT / "server/leanmoe_server/api_processes").rglob("*.py"),
        ROOT / "server/leanmoe_server/seams.py",
    )
)


def test_every_entry_says_why_how_and_when_it_can_go():
    entries = re.split(r"^## ", LEDGER, flags=re.MULTILINE)[1:]
    for entry in entries:
        for heading in ("**Target:**", "**Why:**", "**How:**", "**Can go when:**"):
            assert heading in entry, (entry.splitlines()[0], heading)


def test_every_replaced_class_and_added_method_is_in_the_ledger():
    replaced = re.findall(r"(\w+)\.register_oot\(", CODE)
    added = re.findall(r"^def (leanmoe_\w+)", CODE, flags=re.MULTILINE)
    assigned = re.findall(r"router\.(_\w+) = ", CODE)
    given = re.findall(r"for ours in \((\w+), (\w+)\)", CODE)[0]
    operators = re.findall(r"torch\.ops\._C\.(\w+)", CODE)
    hooked = re.findall(r"_before_\w+\(\w+, \"(\w+)\"", CODE)
    hooked += re.findall(r"for method in \(\"(\w+)\", \"(\w+)\"\)", CODE)[0]
    forced = re.findall(r"moe_config\.(\w+) = ", CODE)
    overridden = re.findall(r"super\(\)\.(expert_map)\b", CODE)
    called = re.findall(r"wrap_triton_call\(\"(\w+)\"", CODE)
    on_instances = re.findall(r"\bexperts\.(moe_\w+) = ", CODE)
    found = (replaced, added, assigned, operators, hooked, forced, overridden, called, on_instances)
    found = (*found, given)
    assert all(found)
    for name in {name for names in found for name in names}:
        assert name in LEDGER, f"{name} is changed and not in PATCHES.md"


def test_every_entry_still_has_its_code():
    for title in re.findall(r"^## (\S+)", LEDGER, flags=re.MULTILINE):
        assert title.split(".")[-1] in CODE, f"PATCHES.md lists {title}, the code does not"
