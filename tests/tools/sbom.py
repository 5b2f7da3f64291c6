"""Writes the bill of materials (SBOM) of each function's binary, as CycloneDX 1.5, beside where `sam build` leaves the binary.

usage: sbom.py FOLDER [PARAMETER=VALUE ...]    (target/lambda; of the parameters of the template Architecture counts)

A bill has every package that `cargo tree -e normal` has for the package and the target, with the version, licence, checksum of
Cargo.lock and dependencies; procedural macros, which run in the compiler only, are among them. It has no time and no serial
number: the same sources make the same file. Cargo.lock must be up to date, as for `--locked`, which SAM cannot be told.
"""
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
TARGETS = {"arm64": "aarch64-unknown-linux-gnu", "x86_64": "x86_64-unknown-linux-gnu"}


def run_cargo(*arguments):
    done = subprocess.run(["cargo", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def list_binaries(template):
    """The binary of each function, with its package."""
    return re.findall(r"^ +Binary: (\S+)\n(?:.*\n){1,9}? +CodeUri: crates/(\S+)$", template, re.M)


def default_architecture(template):
    return re.search(r"^  Architecture:\n(?:    .*\n)*?    Default: (\S+)$", template, re.M).group(1)


def read_tree(package, target):
    """The dependencies of each package of the tree, both as name and version. A package that was printed before is printed
    again without what is below it."""
    arguments = ["--locked", "--edges", "normal", "--package", package, "--target", target, "--prefix", "depth"]
    dependencies, path = {}, []
    for line in run_cargo("tree", *arguments).splitlines():
        depth, name, version = re.match(r"(\d+)(\S+) v(\S+)", line).groups()
        key = (name, version)
        dependencies.setdefault(key, set())
        del path[int(depth):]
        if path:
            dependencies[path[-1]].add(key)
        path.append(key)
    return dependencies


def reference(key):
    return "@".join(key)


def describe(key, package, checksum):
    component = {"type": "library", "bom-ref": reference(key), "name": key[0], "version": key[1]}
    if package.get("license"):
        # Some packages still have the old form, with a slash.
        component["licenses"] = [{"expression": re.sub(r" ?/ ?", " OR ", package["license"])}]
    if checksum:
        component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        # Of crates.io; a package of this workspace is nowhere else.
        component["purl"] = f"pkg:cargo/{key[0]}@{key[1]}"
    return component


def make_bill(binary, package, target):
    tree = read_tree(package, target)
    metadata = json.loads(run_cargo("metadata", "--locked", "--format-version", "1", "--filter-platform", target))
    packages = {(it["name"], it["version"]): it for it in metadata["packages"]}
    lock = (ROOT / "Cargo.lock").read_text()
    checksums = {
        (name, version): checksum
        for name, version, checksum in re.findall(r'name = "(.+)"\nversion = "(.+)"\nsource = .+\nchecksum = "(.+)"', lock)
    }
    root = next(iter(tree))
    components = [describe(key, packages[key], checksums.get(key)) for key in sorted(tree) if key != root]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "bom-ref": reference(root), "name": binary, "version": root[1]},
            "properties": [{"name": "billhook:target", "value": target}],
        },
        "components": components,
        "dependencies": [{"ref": reference(key), "dependsOn": sorted(map(reference, tree[key]))} for key in sorted(tree)],
    }


def main(folder, *pairs):
    template = (ROOT / "template.yaml").read_text()
    parameters = dict(pair.split("=", 1) for pair in pairs)
    target = TARGETS[parameters.get("Architecture") or default_architecture(template)]
    for binary, package in list_binaries(template):
        file = pathlib.Path(folder) / binary / "bootstrap.cdx.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(make_bill(binary, package, target), indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
