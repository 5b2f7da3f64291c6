"""The AWS actions that the code has: calls of the SDK's operations, and requests that the code builds itself."""
import pathlib
import re
from collections import defaultdict

from wire_records import model_of, rest_operation

ROOT = pathlib.Path(__file__).parents[2]


def snake_case(operation):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", operation).lower()


def without_tests(text):
    return text.split("#[cfg(test)]\nmod tests {")[0]


def actions_of_sdk(text, services):
    """`.put_item()` calls an operation of one of the SDK's clients."""
    called = set(re.findall(r"\.(\w+)\(\)", text))
    for service in services:
        for operation in model_of(service).operation_names:
            if snake_case(operation) in called:
                yield service, operation


def actions_of_requests(text, services):
    """Requests that the code builds itself, in the three forms that AWS has. `services` are the names by constant."""
    for target in re.findall(r'"x-amz-target", "([\w.]+)"', text):
        prefix, operation = target.split(".")
        yield from ((name, operation) for name in services.values() if model_of(name).metadata.get("targetPrefix") == prefix)
    for operation in re.findall(r'\("Action"(?:\.to_owned\(\))?, "(\w+)"', text):
        for constant in re.findall(r"query_xml\(\s*(\w+)", text):
            if operation in model_of(services[constant]).operation_names:
                yield services[constant], operation
    for method, constant in re.findall(r"(get|post)_text\(\s*([A-Z]+)", text):
        for path in re.findall(r'"(/[\w{}/-]+)"', text):
            operation, _ = rest_operation(model_of(services[constant]), method.upper(), re.sub(r"\{\w*\}", "x", path))
            if operation:
                yield services[constant], operation


def actions_of_code(root=ROOT):
    """The crates that have an action, by service and operation."""
    sdk = re.findall(r"^aws-sdk-(\w+) =", (root / "Cargo.toml").read_text(), re.MULTILINE)
    files = [file for file in root.glob("crates/*/src/**/*.rs") if file.name != "tests.rs" and "testkit" not in file.parts]
    texts = {file: without_tests(file.read_text()) for file in files}
    services = {}
    for text in texts.values():
        services.update(re.findall(r'const (\w+): AwsService =\s+AwsService::new\("(\w+)"', text))
        services.update((name, name) for name in re.findall(r'SigningName::from_static\("(\w+)"', text))
    actions = defaultdict(set)
    for file, text in texts.items():
        crate = file.relative_to(root).parts[1]
        requests = set(actions_of_requests(text, services))
        if re.search(r"\.(get_text|post_text|query_xml)\(\s*[A-Z]", text) and not requests:
            raise ValueError(f"{file}: no action is found in the request that it builds")
        for action in requests | set(actions_of_sdk(text, sdk)):
            actions[action].add(crate)
    return actions
