"""Reads the AWS requests that the flows recorded (crates/testkit/src/proxy.rs), and what the local AWS saw of them
(emulator.py)."""
import base64
import json
import pathlib
import re
from collections import namedtuple
from urllib.parse import parse_qsl, unquote, urlsplit

from botocore.loaders import Loader
from botocore.model import ServiceModel

LOADER = Loader()
MODELS = {}

# `source` is the name of the recorder, `key` the access key id, `value` the parameters, and `faults` what is wrong with the
# form, each with its place. `operation` is None if no operation of the service has this form.
Request = namedtuple("Request", "source key region service operation value faults")


def model_of(service):
    service = {"monitoring": "cloudwatch"}.get(service, service)
    if service not in MODELS:
        MODELS[service] = ServiceModel(LOADER.load_service_model(service, "service-2"), service)
    return MODELS[service]


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
        uri = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", uri)
        uri = re.sub(r"\\\{(\w+)\\\+\\\}", r"(?P<\1>.+)", uri)
        found = re.match(f"^{uri}/?$", path)
        if found:
            return name, {key: unquote(text) for key, text in found.groupdict().items()}
    return None, None


def read_request(source, record):
    """The request; None if it is not signed or names no operation."""
    signed = re.search(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/aws4_request", record["authorization"] or "")
    if not signed:
        return None
    key, region, service = signed.groups()
    body = base64.b64decode(record["body"])
    model = model_of(service)
    faults = []
    if record["target"]:
        operation, value = record["target"].split(".")[-1], json.loads(body or b"{}")
    elif "x-www-form-urlencoded" in (record["content_type"] or ""):
        form = dict(parse_qsl(body.decode(), keep_blank_values=True))
        operation = form["Action"]
        value, unknown = nest(model.operation_model(operation).input_shape, form)
        faults = [(f".{name}", "unknown member") for name in sorted(unknown)]
    else:
        path = urlsplit(record["path"]).path
        if (record["method"], path) == ("GET", "/"):
            return None  # opens a connection before it is needed (`AwsClients::warm`)
        operation, value = rest_operation(model, record["method"], path)
        if operation is None:
            faults = [("", f"no operation for {record['method']} {path}")]
    return Request(source, key, region, service, operation, value, faults)


def read_lines(file):
    """The objects of a file; a last line that the end of the run cut off is left out."""
    with file.open() as lines:
        yield from (json.loads(line) for line in lines if line.endswith("\n"))


def read_requests(folder, recorder=""):
    """The recorded requests of all recorders, or of those whose name begins so."""
    for file in sorted(pathlib.Path(folder).glob(f"{recorder}*.jsonl")):
        requests = (read_request(file.stem, record) for record in read_lines(file))
        yield from (request for request in requests if request)


def read_emulator(folder):
    """What the local AWS wrote: lines about requests and about roles."""
    for file in sorted(pathlib.Path(folder).glob("*.log")):
        yield from read_lines(file)
