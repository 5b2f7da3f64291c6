"""Holds the AWS requests that the flows recorded to AWS's own service models (botocore) and to rules that no model has.
It also fails if a request reached the local AWS around the recorders, and if the code has an action that no flow makes.

usage: wire_gate.py FOLDER    (with the *.jsonl of crates/testkit/src/proxy.rs and the *.log of emulator.py)
Prints the number of requests of each action, and each finding with how often it occurs; exit code 1 if there is one.
"""
import pathlib
import re
import sys
from collections import Counter

from code_actions import actions_of_code
from wire_records import model_of, read_emulator, read_lines, read_requests

EXPRESSIONS = [
    "UpdateExpression",
    "ConditionExpression",
    "KeyConditionExpression",
    "FilterExpression",
    "ProjectionExpression",
]
TEMPLATE = (pathlib.Path(__file__).parents[2] / "template.yaml").read_text().splitlines()
# Source: "Reserved words in DynamoDB", Amazon DynamoDB developer guide; the copy that moto tests with.
RESERVED = set((pathlib.Path(__file__).parent / "dynamodb_reserved_words.txt").read_text().split())
# Actions of the code that no flow makes, each with its reason.
NOT_IN_FLOWS = {
    ("ssm", "GetParameter"): "no role of the template may read parameters; only an older installation's role does",
    ("wafv2", "GetWebACLForResource"): "the emulator refuses the firewall, so every local stack has Waf=false",
}
KEYWORDS = {"SET", "REMOVE", "ADD", "DELETE", "AND", "OR", "NOT", "BETWEEN", "IN", "SIZE"}


def check_bounds(size, shape, path, unit):
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if (least is not None and size < least) or (most is not None and size > most):
        yield path, f"{size} {unit}, allowed {least} to {most}"


def check_shape(shape, value, path):
    """The faults of a value, each with its place."""
    kind = shape.type_name
    if kind == "structure":
        if not isinstance(value, dict):
            yield path, "no object"
            return
        yield from ((f"{path}.{name}", "unknown member") for name in value if name not in shape.members)
        yield from ((f"{path}.{name}", "required and missing") for name in shape.required_members if name not in value)
        for name, member in value.items():
            if name in shape.members:
                yield from check_shape(shape.members[name], member, f"{path}.{name}")
        if getattr(shape, "is_tagged_union", False) and len(value) != 1:
            yield path, f"a union with {len(value)} members"
    elif kind == "list":
        yield from check_bounds(len(value), shape, path, "items")
        for item in value:
            yield from check_shape(shape.member, item, f"{path}[]")
    elif kind == "map":
        yield from check_bounds(len(value), shape, path, "entries")
        for key, member in value.items():
            yield from check_shape(shape.key, key, f"{path}{{key}}")
            yield from check_shape(shape.value, member, f"{path}{{}}")
    elif kind == "string":
        if not isinstance(value, str):
            yield path, "no text"
            return
        yield from check_bounds(len(value), shape, path, "characters")
        allowed = shape.metadata.get("enum")
        if allowed and value not in allowed:
            yield path, f"{value!r} is not one of {allowed[:6]}"
        pattern = shape._shape_model.get("pattern")
        if pattern and not matches(pattern, value):
            yield path, f"does not match {pattern}"
    elif kind in ("integer", "long", "float", "double"):
        try:
            yield from check_bounds(float(value), shape, path, "")
        except (TypeError, ValueError):
            yield path, "no number"
    elif kind == "boolean" and value not in (True, False, "true", "false"):
        yield path, "no truth value"


def matches(pattern, value):
    try:
        return re.search(pattern, value) is not None
    except re.error:
        return True  # a pattern that Python does not know


def check_rules(service, operation, value):
    """What AWS does and no model says."""
    if (service, operation) == ("cloudformation", "UpdateStack") and value.get("UsePreviousTemplate") == "true":
        if any("LanguageExtensions" in line for line in TEMPLATE if not line.startswith("#")):
            yield "UsePreviousTemplate: with AWS::LanguageExtensions CloudFormation keeps the old value of each parameter"
    if (service, operation) == ("sqs", "ReceiveMessage") and not value.get("WaitTimeSeconds"):
        yield "short polling: an empty answer does not say that the queue is empty"
    if service != "dynamodb":
        return
    parts = [value] + [list(item.values())[0] for item in value.get("TransactItems", [])]
    for part in parts:
        text = " ".join(part.get(name) or "" for name in EXPRESSIONS)
        yield from (f"{name} is longer than 4 KB" for name in EXPRESSIONS if len(part.get(name) or "") > 4096)
        for names in ("ExpressionAttributeNames", "ExpressionAttributeValues"):
            if part.get(names) == {}:
                yield f"{names} is empty"
            for name in part.get(names) or {}:
                if not re.search(re.escape(name) + r"(?!\w)", text):
                    yield f"unused {name}"
        used = set(re.findall(r"[#:]\w+", text))
        given = set(part.get("ExpressionAttributeNames") or {}) | set(part.get("ExpressionAttributeValues") or {})
        yield from (f"{name} is not given" for name in sorted(used - given))
        bare = re.sub(r"[#:]\w+", "", text)
        for word in re.findall(r"[A-Za-z_]\w*", bare):
            if word.upper() in RESERVED - KEYWORDS:
                yield f"the reserved word {word}"
    if operation == "Query" and value.get("IndexName") and value.get("ConsistentRead"):
        yield "a consistent read of a global index"


def check_request(request):
    """The faults of a request, each with its place."""
    yield from request.faults
    if request.operation is None:
        return
    model = model_of(request.service)
    shape = model.operation_model(request.operation).input_shape
    if shape and model.protocol != "rest-json":
        yield from check_shape(shape, request.value, "")
    yield from (("", rule) for rule in check_rules(request.service, request.operation, request.value))


def check_recorders(lines_of, emulator):
    """What the local AWS saw and no recorder wrote, and the recorders of which it saw nothing. `lines_of` is the number of
    lines of each recorder, `emulator` what the local AWS wrote."""
    roles = {line["key"]: line["role"] for line in emulator if "role" in line}
    around, seen = Counter(), set()
    for line in emulator:
        if "call" not in line:
            continue
        name, _, number = (line["recorded"] or "").partition(":")
        seen.add(name)
        if int(number or 1) > lines_of.get(name, 0):
            around[roles.get(line["key"], f"key {line['key']}"), line["call"]] += 1
    for (caller, call), count in sorted(around.items()):
        yield f"{caller}: {call} reached the local AWS and no recorder ({count} times)"
    for name in sorted(set(lines_of) - seen):
        if lines_of[name]:
            yield f"{name}: the local AWS saw none of its requests"


def check_actions(of_code, recorded):
    """The actions of the code that were never recorded. `recorded` are the (source, service, operation) of all requests."""
    by_anyone = {(service, operation) for _, service, operation in recorded}
    by_tool = {(service, operation) for source, service, operation in recorded if source.startswith("tool")}
    for action, crates in sorted(of_code.items()):
        for crate in sorted(crates):
            made = action in (by_tool if crate == "operator" else by_anyone)
            if action in NOT_IN_FLOWS and made:
                yield f"{' '.join(action)} is recorded: take it out of NOT_IN_FLOWS"
            elif action not in NOT_IN_FLOWS and not made:
                yield f"{' '.join(action)}: crates/{crate} has it, and no flow makes it"
    for action in sorted(set(NOT_IN_FLOWS) - set(of_code)):
        yield f"{' '.join(action)}: the code has it no more, take it out of NOT_IN_FLOWS"


def main(folder):
    folder = pathlib.Path(folder)
    lines_of = {file.stem: sum(1 for _ in read_lines(file)) for file in folder.glob("*.jsonl")}
    if not any(lines_of.values()):
        sys.exit(f"no requests were recorded in {folder}")
    seen, findings = Counter(), Counter()
    for request in read_requests(folder):
        action = request.service, request.operation or "?"
        seen[request.source, *action] += 1
        findings.update((*action, path, fault) for path, fault in check_request(request))
    for (service, operation), count in sorted(sum_by_action(seen).items()):
        print(f"{count:7} {service} {operation}")
    for (service, operation, path, fault), count in sorted(findings.items()):
        print(f"{service} {operation}{path}: {fault} ({count} times)", file=sys.stderr)
    missing = [*check_recorders(lines_of, list(read_emulator(folder))), *check_actions(actions_of_code(), set(seen))]
    for finding in missing:
        print(finding, file=sys.stderr)
    sys.exit(1 if findings or missing else 0)


def sum_by_action(seen):
    total = Counter()
    for (_, *action), count in seen.items():
        total[tuple(action)] += count
    return total


if __name__ == "__main__":
    main(sys.argv[1])
