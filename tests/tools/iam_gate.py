"""Least privilege, checked in both directions by the requests that the flows recorded: each request of a function is allowed by
a statement of its role, and each statement of a role is used by some request.

usage: iam_gate.py FOLDER TEMPLATE         (the template as expand.py prints it; FOLDER as for wire_gate.py)
       iam_gate.py --tool FOLDER TEMPLATE  prints what each command of `billhook` does, on which resource and how often

Prints the number of requests of each role, and each finding; exit code 1 if there is one.

The local AWS enforces the same policies, but it judges as its authors read AWS's documents, and a call that it refuses may be
one whose failure the code survives. Sources of what a request needs: the Service Authorization Reference; for transactions
"Using IAM with DynamoDB transactions" in the developer guide of DynamoDB; for batches "Amazon SQS API permissions" in that of
SQS.
"""
import json
import re
import sys
from collections import Counter, defaultdict

from wire_records import read_emulator, read_requests

ACCOUNT = "000000000000"
# A transaction needs the permission of each of its parts.
PARTS = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
    "Get": "GetItem",
}
# The prefix of a service's actions, where it is not the name in the signature.
PREFIXES = {"monitoring": "cloudwatch"}
# Where a resource of a type has its name.
NAMES = {
    "AWS::DynamoDB::Table": "TableName",
    "AWS::SQS::Queue": "QueueName",
    "AWS::SecretsManager::Secret": "Name",
    "AWS::Lambda::Function": "FunctionName",
    "AWS::Logs::LogGroup": "LogGroupName",
    "AWS::SNS::Topic": "TopicName",
}
# Permissions that no recorded request uses, by role (empty for each), action and resource (empty for each), with the reason.
UNRECORDED = {
    ("", "logs:CreateLogStream", ""): "Lambda itself writes the log",
    ("", "logs:PutLogEvents", ""): "Lambda itself writes the log",
    ("", "xray:PutTraceSegments", ""): "Lambda itself sends the traces",
    ("", "xray:PutTelemetryRecords", ""): "Lambda itself sends the traces",
    ("", "sqs:ReceiveMessage", ""): "Lambda itself polls the queue",
    ("", "sqs:DeleteMessage", ""): "Lambda itself polls the queue",
    ("", "sqs:GetQueueAttributes", ""): "Lambda itself polls the queue",
    ("CleanupFailedPaymentsRole", "sqs:SendMessage", "ScheduleDlq"): "Lambda itself puts runs that failed into this queue",
}


def list_permissions(request):
    """What a request needs: pairs of action and ARN."""
    value, where = request.value, f"{request.region}:{ACCOUNT}"
    if request.service == "dynamodb":
        yield from list_table_permissions(request.operation, value, f"arn:aws:dynamodb:{where}:table/")
        return
    action, resource = request.operation, "*"
    if request.service == "sqs":
        action = action.removesuffix("Batch")
        resource = f"arn:aws:sqs:{where}:{value.get('QueueUrl', '').rsplit('/', 1)[-1]}"
    elif request.service == "secretsmanager":
        resource = value["SecretId"]
    elif request.service == "cloudformation":
        resource = f"arn:aws:cloudformation:{where}:stack/{value['StackName']}/*"
    elif request.service == "logs":
        resource = f"arn:aws:logs:{where}:log-group:{value['logGroupName']}:*"
    elif request.service == "sns":
        resource = value["TopicArn"]
    elif request.service == "kms":
        resource = value["KeyId"]
    elif request.service == "lambda":
        action = {"Invoke": "InvokeFunction"}.get(action, action)
        # What is asked of the account names no function.
        resource = f"arn:aws:lambda:{where}:function:{value['FunctionName']}" if "FunctionName" in value else "*"
    elif request.service == "apigateway":
        # Its actions are the methods of HTTP, its resources the paths.
        stage = f"restapis/{value['restapi_id']}/stages/{value['stage_name']}" if "restapi_id" in value else "account"
        action, resource = "GET", f"arn:aws:apigateway:{request.region}::/{stage}"
    elif (request.service, action) == ("sts", "GetCallerIdentity"):
        return  # needs no permission
    yield f"{PREFIXES.get(request.service, request.service)}:{action}", resource


def list_table_permissions(operation, value, tables):
    if operation in ("BatchGetItem", "BatchWriteItem"):
        needed = [(operation, table) for table in value["RequestItems"]]
    elif operation in ("TransactWriteItems", "TransactGetItems"):
        parts = (part for item in value["TransactItems"] for part in item.items())
        needed = [(PARTS[kind], part["TableName"]) for kind, part in parts]
    else:
        index = f"/index/{value['IndexName']}" if "IndexName" in value else ""
        needed = [(operation, value["TableName"] + index)]
    for action, table in needed:
        yield f"dynamodb:{action}", table if table.startswith("arn:") else tables + table


def listed(value):
    return value if isinstance(value, list) else [value]


def matches(pattern, text):
    """Whether a pattern of IAM matches: `*` is any text, `?` any character."""
    pattern = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(pattern, text) is not None


def allows(statement, action, resource):
    unknown = set(statement) - {"Effect", "Action", "Resource"}
    if unknown or statement["Effect"] != "Allow":
        raise ValueError(f"a statement with more than this gate judges: {statement}")
    return any(matches(pattern.lower(), action.lower()) for pattern in listed(statement["Action"])) and any(
        matches(pattern, resource) for pattern in listed(statement["Resource"])
    )


def statements_of(template):
    """The statements of each role of a function."""
    resources = template["Resources"]
    functions = [resource for resource in resources.values() if resource["Type"] == "AWS::Lambda::Function"]
    roles = {function["Properties"]["Role"]["Fn::GetAtt"][0] for function in functions}
    return {
        role: [
            statement
            for policy in resources[role]["Properties"]["Policies"]
            for statement in policy["PolicyDocument"]["Statement"]
        ]
        for role in roles
    }


def name_resource(value):
    """The resource of a statement as docs/permissions.md names it."""
    if "Fn::If" in value:
        return name_resource(value["Fn::If"][1])
    if "Fn::GetAtt" in value:
        return value["Fn::GetAtt"][0]
    return re.sub(r"\$\{(\w+)\.Arn\}", r"\1", value["Fn::Sub"] if "Fn::Sub" in value else value)


def read_roles(emulator, template):
    """By key id of a session: the role's name in the template, and its statements each time they changed. The local AWS made
    them of the template, so the nth statement of one is the nth of the other."""
    roles = {}
    for line in emulator:
        # A role has no statements any more while its stack is deleted.
        if not line.get("statements"):
            continue
        found = [role for role in template if f"-{role}-" in line["role"]]
        if len(found) != 1 or actions_of(template[found[0]]) != actions_of(line["statements"]):
            raise ValueError(f"{line['role']} is no role of the template, or has other statements: run the flows again")
        roles.setdefault(line["key"], (found[0], []))[1].append(line["statements"])
    return roles


def actions_of(statements):
    return [listed(statement["Action"]) for statement in statements]


def judge(requests, roles):
    """The requests of each role, those that no statement allows, and the actions that were used, by role and the statement's
    number. Requests of a key that is no role's are the tool's, which has the permissions of whoever calls it."""
    counted, refused, used = Counter(), Counter(), set()
    for request in requests:
        if request.key not in roles:
            if request.source.startswith("functions"):
                refused["?", f"key {request.key}", "no role has it"] += 1
            continue
        role, versions = roles[request.key]
        counted[role] += 1
        for action, resource in list_permissions(request):
            allowing = {
                number
                for statements in versions
                for number, statement in enumerate(statements)
                if allows(statement, action, resource)
            }
            used.update((role, number, action) for number in allowing)
            if not allowing:
                refused[role, action, resource] += 1
    return counted, refused, used


def find_unused(template, used):
    """The permissions that no request used, and the exceptions that are none."""
    idle, excepted = [], set()
    for role, statements in sorted(template.items()):
        for number, statement in enumerate(statements):
            resource = name_resource(statement["Resource"])
            for action in listed(statement["Action"]):
                reasons = {
                    exception
                    for exception in UNRECORDED
                    if exception[0] in ("", role) and exception[1] == action and exception[2] in ("", resource)
                }
                excepted |= reasons
                if bool(reasons) == ((role, number, action) in used):
                    word = "is used: take it out of UNRECORDED" if reasons else "is used by no flow"
                    idle.append(f"{role}: {action} on {resource} {word}")
    return idle + [f"no statement is that of UNRECORDED any more: {stale}" for stale in sorted(set(UNRECORDED) - excepted)]


def name_physical(template):
    """Names a physical resource by its place in the template, so that a list does not depend on the stack."""
    patterns = []
    for logical, resource in template["Resources"].items():
        name = resource.get("Properties", {}).get(NAMES.get(resource["Type"]), {})
        name = name["Fn::If"][1] if "Fn::If" in name else name
        if "Fn::Sub" in name:
            pattern = re.sub(r"\\\$\\{\w+\\}", "[^/:-]+", re.escape(name["Fn::Sub"]))
            patterns.append((re.compile(f"(.*[:/])?{pattern}(-[0-9a-f]{{6}})?(:\\*)?(?P<rest>/index/.*)?"), logical))

    def name_of(resource):
        for pattern, logical in patterns:
            found = pattern.fullmatch(resource)
            if found:
                return logical + (found["rest"] or "")
        return re.sub(r"\b[a-z]+\d+-test\b", "${AWS::StackName}", resource)

    return name_of


def print_tool(requests, name):
    """What each command of the tool does. Its key id is the command (`name_command` in tests/tests/flows/operator)."""
    made = defaultdict(Counter)
    for request in requests:
        if request.source.startswith("tool"):
            command = request.key.replace("_", " ")
            made[command].update((action, name(resource)) for action, resource in list_permissions(request))
    for command, permissions in sorted(made.items()):
        for (action, resource), count in sorted(permissions.items()):
            print(f"{command}\t{action}\t{resource}\t{count}")


def main(folder, template):
    with open(template, encoding="utf-8") as file:
        statements = statements_of(json.load(file))
    roles = read_roles(read_emulator(folder), statements)
    counted, refused, used = judge(read_requests(folder), roles)
    for role, count in sorted(counted.items()):
        print(f"{count:7} {role}")
    findings = [
        f"{role}: no statement allows {action} on {resource} ({count} times)"
        for (role, action, resource), count in sorted(refused.items())
    ]
    findings += find_unused(statements, used)
    for finding in findings:
        print(finding, file=sys.stderr)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    if sys.argv[1] == "--tool":
        with open(sys.argv[3], encoding="utf-8") as file:
            print_tool(read_requests(sys.argv[2]), name_physical(json.load(file)))
    else:
        main(*sys.argv[1:])
