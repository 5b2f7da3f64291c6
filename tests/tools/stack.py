"""What `make` does with a whole stack on AWS, beside `sam deploy`.

usage: stack.py parameters STACK [NAME=VALUE ...]     prints the parameters of the deployment, NAME=VALUE
       stack.py import STACK [NAME=VALUE ...]         makes a stack of the tables that a deleted one left behind
       stack.py destroy STACK [NAME=VALUE ...] [--yes] deletes the stack and what it keeps: tables and secrets

STACK is an environment of samconfig.toml (default, staging, prod) or the name of a stack. Each NAME=VALUE replaces or
adds to the parameters that samconfig.toml has for it.

What is imported or deleted bears the tag that template.yaml gives it, with the name of this very stack: a table that the
application made, or that belongs to another stack, is never touched, whatever it is called.
"""
import json
import pathlib
import re
import sys

import boto3
import tomlkit
from botocore.exceptions import BotoCoreError, ClientError, WaiterError
from samcli.yamlhelper import yaml_parse

ROOT = pathlib.Path(__file__).parents[2]
TABLE, SECRET = "AWS::DynamoDB::Table", "AWS::SecretsManager::Secret"
# The tag of template.yaml, with the stack's name.
OWNER = "billhook-stack"
# Its rows are checkpoints of the scheduled tasks and of the endpoints: a stack has some before its first delivery.
CHECKPOINTS = "JobsTable"
# boto3 asks every 30 seconds; a stack without rows is made and deleted in less. It gives up after an hour.
POLL = {"Delay": 5, "MaxAttempts": 720}


def refuse(text):
    sys.exit(f"stack.py: {text}")


def read_samconfig(stack):
    """The stack's name and its parameters; of a stack that samconfig.toml does not know, only the name."""
    environments = tomlkit.parse((ROOT / "samconfig.toml").read_text()).unwrap()
    environment = environments.get(stack, {}).get("global", {}).get("parameters", {})
    return environment.get("stack_name", stack), dict(pair.split("=", 1) for pair in environment.get("parameter_overrides", []))


def read_parameters(template, configured, pairs):
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found or name not in template["Parameters"]:
            refuse(f"{pair} is not NAME=VALUE with a parameter of template.yaml")
        if re.search(r"\s", value):
            refuse(f"the value of {name} has white space, which `sam deploy` would split: deploy with sam itself")
        configured[name] = value
    return configured


def describe(stack):
    """The stack as CloudFormation has it, or None."""
    try:
        return boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
    except ClientError as error:
        if "does not exist" in str(error):
            return None
        raise


def resolve(template, parameters, value):
    """What CloudFormation makes of the functions in the names and conditions of tables and secrets."""
    again = lambda part: resolve(template, parameters, part)  # noqa: E731
    if isinstance(value, list):
        return [again(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "Ref" in value:
        return parameters.get(value["Ref"], value)
    if "Condition" in value and len(value) == 1:
        return again(template["Conditions"][value["Condition"]])
    if "Fn::Sub" in value:
        return re.sub(r"\$\{(\w+)\}", lambda name: str(parameters[name.group(1)]), value["Fn::Sub"])
    if "Fn::If" in value:
        condition, yes, no = value["Fn::If"]
        return again(yes if again({"Condition": condition}) else no)
    if "Fn::Equals" in value:
        left, right = again(value["Fn::Equals"])
        return str(left) == str(right)
    if "Fn::Not" in value:
        return not again(value["Fn::Not"])[0]
    if "Fn::Or" in value:
        return any(again(value["Fn::Or"]))
    return {key: again(part) for key, part in value.items()}


def list_kept(template, parameters):
    """The tables and secrets that the stack leaves behind, by logical id, with their functions resolved."""
    defaults = {name: given.get("Default", "") for name, given in template["Parameters"].items()}
    values = defaults | parameters
    kept = {}
    for name, resource in template["Resources"].items():
        if resource["Type"] in (TABLE, SECRET) and "DeletionPolicy" in resource:
            if "Condition" not in resource or resolve(template, values, {"Condition": resource["Condition"]}):
                kept[name] = dict(resource, Properties=resolve(template, values, resource["Properties"]))
                kept[name].pop("Condition", None)
    return kept


def read_table(name):
    try:
        return boto3.client("dynamodb").describe_table(TableName=name)["Table"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            return None
        raise


def find_table(stack, name):
    """The table, if it is there and this stack's."""
    table = read_table(name)
    if table is None:
        return None
    listed = boto3.client("dynamodb").list_tags_of_resource(ResourceArn=table["TableArn"])
    return table if {"Key": OWNER, "Value": stack} in listed["Tags"] else None


def find_secret(stack, name):
    """The ARN of a secret that is this stack's and not scheduled for deletion, or None."""
    try:
        secret = boto3.client("secretsmanager").describe_secret(SecretId=name)
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            return None
        raise
    is_own = {"Key": OWNER, "Value": stack} in secret.get("Tags", [])
    return secret["ARN"] if is_own and "DeletedDate" not in secret else None


def names_of(kept, kind):
    member = {TABLE: "TableName", SECRET: "Name"}[kind]
    return {name: kept[name]["Properties"][member] for name in kept if kept[name]["Type"] == kind}


def print_parameters(template, stack, configured, pairs):
    parameters = read_parameters(template, configured, pairs)
    there = describe(stack) or {}
    is_set = any(given["ParameterKey"] == "ApiGatewayLogRole" for given in there.get("Parameters", []))
    if "ApiGatewayLogRole" not in parameters and not is_set:
        # One role per account and region: the first stack makes it.
        account = boto3.client("apigateway").get_account()
        parameters["ApiGatewayLogRole"] = "existing" if account.get("cloudwatchRoleArn") else "create"
    print(" ".join(f"{name}={value}" for name, value in parameters.items()))


def import_tables(template, stack, environment, parameters):
    cloudformation = boto3.client("cloudformation")
    there = describe(stack)
    if there is not None:
        status = there["StackStatus"]
        if status == "REVIEW_IN_PROGRESS":
            refuse(f"an import of {stack} did not end: `aws cloudformation delete-stack --stack-name {stack}`, then again")
        refuse(f"{stack} exists ({status}): only a deleted stack's tables can be imported")
    kept = list_kept(template, parameters)
    tables = {name: table for name, table in names_of(kept, TABLE).items() if find_table(stack, table)}
    if not tables:
        refuse(f"no table with the tag {OWNER}={stack} is left: deploy it as a new stack")
    # Static, and without functions: an import takes a template that has only what is imported.
    body = {"Resources": {name: dict(kept[name]) for name in tables}}
    for resource in body["Resources"].values():
        resource["Properties"]["Tags"] = [{"Key": OWNER, "Value": stack}]
    wanted = [
        {"ResourceType": TABLE, "LogicalResourceId": name, "ResourceIdentifier": {"TableName": table}}
        for name, table in tables.items()
    ]
    change = {"StackName": stack, "ChangeSetName": "import-tables"}
    cloudformation.create_change_set(
        **change, ChangeSetType="IMPORT", ResourcesToImport=wanted, TemplateBody=json.dumps(body)
    )
    cloudformation.get_waiter("change_set_create_complete").wait(**change, WaiterConfig=POLL)
    cloudformation.execute_change_set(**change)
    cloudformation.get_waiter("stack_import_complete").wait(StackName=stack, WaiterConfig=POLL)
    print(f"{stack} has its tables again: {', '.join(sorted(tables.values()))}")
    found = {name: find_secret(stack, secret) for name, secret in names_of(kept, SECRET).items()}
    given = [f"Existing{name}Arn={arn}" for name, arn in found.items() if arn]
    print(f"now deploy the rest, with the parameters of before: make deploy ENV={environment} PARAMS='{' '.join(given)}'")


def destroy(template, stack, parameters, is_agreed):
    there = describe(stack)
    # None yet, if `import` made the stack and nobody has deployed it.
    parameters |= {given["ParameterKey"]: given["ParameterValue"] for given in (there or {}).get("Parameters", [])}
    if not {"Env", "LiveMode"} <= parameters.keys():
        refuse(f"samconfig.toml does not say what {stack} is, and neither does the stack: pass Env=… LiveMode=…")
    # After an import the secrets that the stack once made are its existing ones, by their tag; they go too.
    own = {name: "" for name in template["Parameters"] if re.fullmatch(r"Existing\w+SecretArn", name)}
    kept = list_kept(template, parameters | own)
    dynamodb = boto3.client("dynamodb")
    found = {name: find_table(stack, table) for name, table in names_of(kept, TABLE).items()}
    tables = {name: table for name, table in found.items() if table}
    is_production = parameters["Env"] == "prod" or parameters["LiveMode"] == "true"
    for name, table in tables.items():
        # What the table itself says counts more than what somebody typed.
        is_protected = is_production or table.get("DeletionProtectionEnabled")
        if is_protected and name != CHECKPOINTS and dynamodb.scan(TableName=table["TableName"], Limit=1)["Count"]:
            refuse(
                f"{table['TableName']} has rows, and {stack} is a production environment: nothing was deleted. "
                "To give up the data, delete the stack and its tables by hand"
            )
    secrets = [arn for name in names_of(kept, SECRET).values() if (arn := find_secret(stack, name))]
    if there is None and not tables and not secrets:
        refuse(f"there is no stack {stack} and nothing with the tag {OWNER}={stack}")
    print(f"to be deleted for good in {boto3.session.Session().region_name}:")
    if there is not None:
        print(f"  stack {stack}, {there['StackStatus']}, with its endpoints at Stripe")
    names = [table["TableName"] for table in tables.values()]
    for name in names:
        print(f"  table {name}")
    for arn in secrets:
        print(f"  secret {arn}")
    if not is_agreed and input(f"type {stack} to delete all of this: ").strip() != stack:
        refuse("nothing was deleted")
    for table in tables.values():
        if table.get("DeletionProtectionEnabled"):
            dynamodb.update_table(TableName=table["TableName"], DeletionProtectionEnabled=False)
            dynamodb.get_waiter("table_exists").wait(TableName=table["TableName"], WaiterConfig=POLL)
    if there is not None:
        delete_stack(there["StackId"], stack)
    # A deployment that never ended takes its tables along, so some of them may be gone by now.
    for name in filter(read_table, names):
        dynamodb.delete_table(TableName=name)
        dynamodb.get_waiter("table_not_exists").wait(TableName=name, WaiterConfig=POLL)
    for arn in secrets:
        boto3.client("secretsmanager").delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)
    print("deleted. The role with which API Gateway writes logs stays: it belongs to the account and region")


def delete_stack(stack_id, stack):
    cloudformation = boto3.client("cloudformation")
    cloudformation.delete_stack(StackName=stack_id)
    try:
        cloudformation.get_waiter("stack_delete_complete").wait(StackName=stack_id, WaiterConfig=POLL)
    except WaiterError:
        for page in cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack_id):
            for resource in page["StackResourceSummaries"]:
                if resource["ResourceStatus"] == "DELETE_FAILED":
                    reason = resource.get("ResourceStatusReason")
                    print(f"{resource['LogicalResourceId']} was not deleted: {reason}", file=sys.stderr)
        refuse(f"{stack} was not deleted: docs/runbook/stack.md says what to do")


def main(arguments):
    is_agreed = "--yes" in arguments
    command, stack, *pairs = [argument for argument in arguments if argument != "--yes"]
    template = yaml_parse((ROOT / "template.yaml").read_text())
    name, configured = read_samconfig(stack)
    if command == "parameters":
        return print_parameters(template, name, configured, pairs)
    parameters = read_parameters(template, configured, pairs)
    if command == "import":
        return import_tables(template, name, stack, parameters)
    if command == "destroy":
        return destroy(template, name, parameters, is_agreed)
    return sys.exit(__doc__)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(sys.argv[1:])
    except (BotoCoreError, ClientError) as error:
        refuse(f"{error} Set AWS_REGION." if "region" in str(error) else error)
