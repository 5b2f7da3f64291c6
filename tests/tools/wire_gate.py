"""Holds the AWS requests that the flows recorded to AWS's own service models (botocore) and to rules that no model has.

usage: wire_gate.py FOLDER    (with the recorded *.jsonl of crates/testkit/src/proxy.rs)
Prints the number of requests of each action, and each finding with how often it occurs; exit code 1 if there is one.
"""
import base64
import json
import pathlib
import re
import sys
from collections import Counter
from urllib.parse import parse_qsl, unquote, urlsplit

from botocore.loaders import Loader
from botocore.model import ServiceModel

LOADER = Loader()
MODELS = {}
EXPRESSIONS = [
    "UpdateExpression",
    "ConditionExpression",
    "KeyConditionExpression",
    "FilterExpression",
    "ProjectionExpression",
]
# Source: "Reserved words in DynamoDB", Amazon DynamoDB developer guide; the copy that moto tests with.
TEMPLATE = (pathlib.Path(__file__).parents[2] / "template.yaml").read_text().splitlines()
RESERVED = set((pathlib.Path(__file__).parent / "dynamodb_reserved_words.txt").read_text().split())
KEYWORDS = {"SET", "REMOVE", "ADD", "DELETE", "AND", "OR", "NOT", "BETWEEN", "IN", "SIZE"}


def model_of(service):
    service = {"monitoring": "cloudwatch"}.get(service, service)
    if service not in MODELS:
        MODELS[service] = ServiceModel(LOADER.load_service_model(service, "service-2"), service)
    return MODELS[service]


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


def nest(shape, form):
    """The value of the query protocol's flat names, and the names that no member has."""
    used = set()

    def has(prefix):
        return any(name == prefix or name.startswith(f"{prefix}.") for name in form)

    def build(shape, prefix):
        if shape.type_name == "structure":
            value = {}
            for name, member in shape.members.items():
                wire = member.serialization.get("name", name)
                path = f"{prefix}.{wire}" if prefix else wire
                if has(path):
                    value[name] = build(member, path)
            return value
        if shape.type_name == "list":
            flat = shape.serialization.get("flattened")
            path = prefix if flat else f"{prefix}.{shape.member.serialization.get('name', 'member')}"
            items, number = [], 1
            while has(f"{path}.{number}"):
                items.append(build(shape.member, f"{path}.{number}"))
                number += 1
            return items
        used.add(prefix)
        return form.get(prefix, "")

    value = build(shape, "") if shape else {}
    return value, set(form) - used - {"Action", "Version"}


def rest_operation(model, method, path):
    for name in model.operation_names:
        operation = model.operation_model(name)
        if operation.http["method"] != method:
            continue
        uri = re.escape(operation.http["requestUri"].split("?")[0])
        uri = re.sub(r"\\\{(\w+)\\?\+?\\\}", r"(?P<\1>.+?)", uri)
        found = re.match(f"^{uri}/?$", path)
        if found:
            return name, {key: unquote(text) for key, text in found.groupdict().items()}
    return None, None


def read_request(record):
    """Service, operation, value and what is wrong with the form; None of a request that is not signed."""
    signed = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/aws4_request", record["authorization"] or "")
    if not signed:
        return None
    service = signed.group(1)
    body = base64.b64decode(record["body"])
    model = model_of(service)
    if record["target"]:
        return service, record["target"].split(".")[-1], json.loads(body or b"{}"), []
    if "x-www-form-urlencoded" in (record["content_type"] or ""):
        form = dict(parse_qsl(body.decode(), keep_blank_values=True))
        operation = form["Action"]
        value, unknown = nest(model.operation_model(operation).input_shape, form)
        return service, operation, value, [(f".{name}", "unknown member") for name in sorted(unknown)]
    path = urlsplit(record["path"]).path
    if (record["method"], path) == ("GET", "/"):
        return None  # opens a connection before it is needed (`AwsClients::warm`)
    operation, value = rest_operation(model, record["method"], path)
    faults = [] if operation else [("", f"no operation for {record['method']} {path}")]
    return service, operation, value, faults


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


def main(folder):
    files = sorted(pathlib.Path(folder).glob("*.jsonl"))
    if not files:
        sys.exit(f"no requests were recorded in {folder}")
    seen, findings = Counter(), Counter()
    for file in files:
        for line in file.open():
            request = read_request(json.loads(line))
            if request is None:
                continue
            service, operation, value, faults = request
            seen[service, operation or "?"] += 1
            if operation:
                shape = model_of(service).operation_model(operation).input_shape
                if shape and model_of(service).protocol != "rest-json":
                    faults += check_shape(shape, value, "")
                faults += [("", rule) for rule in check_rules(service, operation, value)]
            findings.update((service, operation or "?", path, fault) for path, fault in faults)
    for (service, operation), count in sorted(seen.items()):
        print(f"{count:7} {service} {operation}")
    for (service, operation, path, fault), count in sorted(findings.items()):
        print(f"{service} {operation}{path}: {fault} ({count} times)", file=sys.stderr)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main(sys.argv[1])
