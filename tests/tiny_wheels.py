"""Wheels of nothing but metadata, for tests of what fits what."""

import zipfile


def make_wheel(folder, requirement, *requires):
    """The path of a new wheel in ``folder``: ``name==version``, requiring what is named."""
    name, version = requirement.split("==")
    inside = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {one}" for one in requires]
    files = {
        "METADATA": "\n".join(lines) + "\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(f"{inside}/{file}", text)
    return path
