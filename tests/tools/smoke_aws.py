"""`make smoke-aws`: deploys billhook to AWS as a stack of its own, tries once what only AWS can show, and deletes it again.

usage: smoke_aws.py --tool PATH [--minutes N] [--staged FOLDER] [NAME=VALUE ...]

--tool      the command `billhook`
--minutes   after so many minutes no step begins or goes on, and the stack is deleted within them if it can be (20)
--staged    the functions as `sam build` would leave them: for the local AWS, see LocalAws
NAME=VALUE  further parameters of the stack

It does what a user does: `make deploy`, `billhook`, `make import`, `make destroy`. Credentials and region come from where every
AWS tool finds them. STRIPE_KEY is a test key of Stripe; if it is not set, the script asks for it, and without one it
skips the steps that need Stripe. The stack and its AppName have a random name, and whatever happens it is deleted at
the end. The report is printed and written to target/smoke-aws.md, what the commands print to target/smoke-aws.log;
neither contains a key or a signing secret.

It has never run on AWS. `make smoke-local` runs it on the local AWS.
"""
import argparse
import datetime
import getpass
import itertools
import json
import math
import os
import pathlib
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from inventory import list_resources
from stack import ROOT, describe, yaml_parse

PYTHON, SAM = (str(ROOT / ".venv/bin" / name) for name in ("python", "sam"))
REPORT, LOG = ROOT / "target/smoke-aws.md", ROOT / "target/smoke-aws.log"

# Kept free for the deletion at the end until the run has measured one. Nobody has measured it on AWS.
DELETION_S = 4 * 60
# How long a deletion may take in any case, also when the time is up: a stack that stays costs more.
DELETION_MAX_S = 30 * 60
# AWS lists some things for a while after they are gone: SQS says up to a minute.
LISTED_MAX_S = 120
# A worker needs seconds. Ingress knows a new secret within 10 s.
SETTLE_S = 90
POLL_S = 2
LINES_SHOWN = 20

# List prices in dollars, of docs/cost.md.
FIREWALL_MONTH, FIREWALL_RULE_MONTH, SECRET_MONTH, HOURS_OF_MONTH = 5, 1, 0.40, 730

# Findings of `billhook doctor` that a stack of this script has in any case.
TOLERATED = ["the alarm topic has a subscriber"]
# What it finds as long as no key is stored.
KEPT_SECRETS = ["App", "Inbound", "SealPublic", "StateSeal"]
WITHOUT_LOB = ["lob signing secret", "lob test event is accepted"]
WITHOUT_STRIPE = [
    "Stripe key is stored and of the right mode", "stripe signing secret", "stripe test event is accepted",
]
# Nobody is at a terminal to be asked.
CONFIRMED = ("--reason", "smoke test", "--yes")
# The role of the account and region, which stays on purpose (README, "Access logs").
KEPT_ROLE = "ApiGatewayLogsRole"


class StepFailed(Exception):
    pass


class StepSkipped(Exception):
    pass


class TimeIsUp(StepFailed):
    pass


class Aws:
    """AWS, where `make deploy` builds the functions and deploys them."""

    name = "AWS"
    parameters = {"Waf": "true"}
    # Findings of the doctor that are of the place and not of the stack.
    tolerated = []
    # SQS refuses the name of a queue for 60 s after its deletion.
    queue_name_s = 60

    def build(self, smoke):
        smoke.run("make", "build", f"ARCH={smoke.parameters.get('Architecture', 'arm64')}")

    def deploy(self, smoke, parameters):
        smoke.make("deploy", parameters)


class LocalAws(Aws):
    """All that is different on the local AWS; docs/local.md lists what the emulator leaves out."""

    name = "the local AWS"
    tolerated = [".* recovers to a point in time"]
    queue_name_s = 0

    def __init__(self, staged, app):
        self.staged = staged
        # The emulator refuses the firewall, and takes the API's id from a tag, so that its address is known before.
        self.parameters = {
            "Waf": "false",
            "StripeApiBase": os.environ["STRIPE_API_BASE"],
            "WebhookBaseUrl": f"{os.environ['AWS_ENDPOINT_URL']}/_aws/execute-api/{app}/v1",
        }

    def build(self, smoke):
        raise StepSkipped("the functions are staged")

    def deploy(self, smoke, parameters):
        """`make deploy` without `sam build`."""
        pairs = [f"{name}={value}" for name, value in parameters.items()]
        overrides = smoke.run(PYTHON, "tests/tools/stack.py", "parameters", smoke.app, *pairs).strip()
        smoke.run(
            SAM, "deploy", "--config-file", str(ROOT / "samconfig.toml"), "--config-env", "default",
            "--stack-name", smoke.app, "--s3-prefix", smoke.app, "--parameter-overrides", overrides,
            "--template-file", f"{self.staged}/template.yaml", "--tags", f"ms-custom-id={smoke.app}",
        )


class Smoke:
    def __init__(self, options, stripe_key):
        self.app = f"bhsmoke{secrets.token_hex(3)}"
        self.aws = LocalAws(options.staged, self.app) if options.staged else Aws()
        self.tool = str(pathlib.Path(options.tool).resolve())
        self.limit_s = options.minutes * 60
        self.stripe_key, self.lob_secret = stripe_key, secrets.token_hex(24)
        # A table of orders of its own: by default it has the name of the environment alone.
        self.parameters = {
            "AppName": self.app, "Env": "smoke", "LiveMode": "false", "OrdersTableName": f"{self.app}-orders",
            "LogRetentionDays": "1", "StripeQuietHours": "0",
        } | self.aws.parameters | dict(pair.split("=", 1) for pair in options.parameters)
        self.region = boto3.session.Session().region_name
        self.account = boto3.client("sts").get_caller_identity()["Account"]
        # No command needs the key, and `make` here is not part of the `make` that started this script.
        withheld = ("STRIPE_KEY", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")
        self.environment = {name: value for name, value in os.environ.items() if name not in withheld} | {
            "AWS_REGION": self.region, "AWS_DEFAULT_REGION": self.region, "BILLHOOK_STACK": self.app,
            "SAM_CLI_TELEMETRY": "0", "NO_COLOR": "1",
        }
        self.began_at = datetime.datetime.now(datetime.timezone.utc)
        self.started = self.stop_at = None
        self.deletion_s = min(DELETION_S, self.limit_s / 4)
        self.deployment_s = None
        self.is_there = False  # whether anything of the stack may be there
        self.is_to_import = False  # whether only its tables and secrets are
        self.results, self.outputs, self.left = [], {}, []
        LOG.parent.mkdir(exist_ok=True)
        self.log = LOG.open("w")
        # Before anything is deployed, so that a tool that is missing costs nothing.
        versions = [[program, "--version"] for program in (self.tool, SAM, PYTHON, "make", "rustc")]
        self.tools = "; ".join(self.run(*command).strip().splitlines()[0] for command in versions)

    # ---- commands

    def mask(self, text):
        for secret in filter(None, (self.stripe_key, self.lob_secret)):
            text = text.replace(secret, "(secret)")
        text = re.sub(r"\b([sr]k_(test|live)|whsec)_\w+", "(secret)", text)
        return text.replace(self.account, f"********{self.account[-4:]}")

    def start_clock(self):
        self.started = time.monotonic()
        self.stop_at = self.started + self.limit_s - self.deletion_s

    def left_s(self):
        """Seconds in which steps may still work."""
        return DELETION_MAX_S if self.stop_at is None else self.stop_at - time.monotonic()

    def run(self, *command, stdin=None, codes=(0,), limit_s=None):
        """Runs a command until the time is up, and returns what it prints to standard output."""
        limit_s = self.left_s() if limit_s is None else limit_s
        if limit_s <= 0:
            raise TimeIsUp("the time is up")
        # Not in the terminal's group: Ctrl-C reaches this script alone, which then ends the command.
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, text=True, start_new_session=True, stderr=subprocess.PIPE,
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        )
        # Without options and values: `billhook secrets put`.
        words = itertools.takewhile(lambda word: "=" not in word and not word.startswith("-"), command[1:])
        name = " ".join([pathlib.Path(command[0]).name, *words])
        is_late = False
        try:
            out, errors = process.communicate(stdin, timeout=limit_s)
        except subprocess.TimeoutExpired:
            is_late = True
            os.killpg(process.pid, signal.SIGKILL)
            out, errors = process.communicate()
        finally:
            if process.returncode is None:  # interrupted
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        printed = self.mask(f"$ {' '.join(command)}\n{out}{errors}")
        self.log.write(printed + "\n")
        self.log.flush()
        if process.returncode in codes and not is_late:
            return out
        lines = printed.splitlines()[1:]
        # CloudFormation's reason may be far above.
        shown = [line for line in lines[:-LINES_SHOWN] if "_FAILED" in line] + lines[-LINES_SHOWN:]
        if is_late:
            raise TimeIsUp("\n".join([f"the time is up, and `{name}` was ended after {limit_s:.0f} s", *shown]))
        raise StepFailed("\n".join([f"`{name}` ended with {process.returncode}", *shown]))

    def make(self, target, parameters, *more, limit_s=None):
        pairs = " ".join(f"{name}={value}" for name, value in parameters.items())
        return self.run("make", target, f"ENV={self.app}", f"PARAMS={pairs}", *more, limit_s=limit_s)

    def billhook(self, *arguments, **options):
        return self.run(self.tool, *arguments, **options)

    def wait_for(self, what, probe, seconds=SETTLE_S):
        """Polls until the probe says that it is well, by returning (True, anything)."""
        end = time.monotonic() + seconds
        while True:
            is_well, seen = probe()
            if is_well:
                return seen
            if time.monotonic() > end:
                raise StepFailed(f"{what}, after {seconds} s: {seen}")
            if self.left_s() <= 0:
                raise TimeIsUp(f"the time is up; {what}: {seen}")
            time.sleep(POLL_S)

    def read_outputs(self):
        there = describe(self.app)
        self.outputs = {pair["OutputKey"]: pair["OutputValue"] for pair in there.get("Outputs", [])}
        return there

    def table(self, output):
        return boto3.resource("dynamodb").Table(self.outputs[output])

    # ---- what the steps are made of

    def deploy(self):
        """Deploys and returns its seconds."""
        began = time.monotonic()
        self.is_there = True
        self.aws.deploy(self, self.parameters)
        self.read_outputs()
        return time.monotonic() - began

    def need_time(self, seconds):
        if self.left_s() < seconds:
            left_s = max(self.left_s(), 0)
            raise StepSkipped(f"by what this run measured it takes {seconds:.0f} s, and {left_s:.0f} s are left before the deletion")

    def need_stripe(self):
        if not self.stripe_key:
            raise StepSkipped("no Stripe key")

    def need_stack(self):
        if not self.is_there:
            raise StepSkipped("the stack was not deployed again")

    def put_lob_secret(self):
        self.billhook("secrets", "put", "lob", *CONFIRMED, stdin=self.lob_secret + "\n")

    def put_stripe_key(self):
        self.billhook("secrets", "put", "stripe-key", *CONFIRMED, stdin=self.stripe_key + "\n")

    def check_findings(self, expected=()):
        """Runs the doctor until it finds nothing but what is expected; returns that."""
        allowed = [*TOLERATED, *expected]

        def probe():
            rows = json.loads(self.billhook("doctor", "--output", "json", codes=(0, 4)))
            of_place = lambda row: any(re.fullmatch(name, row["check"]) for name in self.aws.tolerated)  # noqa: E731
            bad = [row for row in rows if row["result"] == "bad" and not of_place(row)]
            other = [row for row in bad if row["check"] not in allowed]
            if other:
                return False, "\n".join(f"{row['check']}: {row['detail']}" for row in other)
            return True, (len(rows), [row["check"] for row in bad])

        count, bad = self.wait_for("`billhook doctor` finds", probe)
        missed = set(expected) - set(bad)
        if missed:
            raise StepFailed(f"`billhook doctor` does not find what it should: {missed}")
        return f"{count} checks; found, as expected: {', '.join(sorted(set(bad)))}"

    def list_endpoints(self):
        """The ids of the endpoints at Stripe that deliver to this stack."""
        base = self.parameters.get("StripeApiBase", "https://api.stripe.com")
        request = urllib.request.Request(
            f"{base}/v1/webhook_endpoints?limit=100", headers={"Authorization": f"Bearer {self.stripe_key}"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            endpoints = json.load(response)["data"]
        return {endpoint["id"] for endpoint in endpoints if endpoint["url"] == self.outputs["WebhookUrlStripe"]}

    def check_endpoints(self):
        """That Stripe has the endpoints of the outputs and no others of the stack; returns their ids."""
        # The parameter StripeEndpoints may ask for one of them only.
        states = {value for name, value in self.outputs.items() if name.endswith("EndpointState")}
        if not all(state.startswith("we_") for state in states):
            raise StepFailed(f"the outputs name no endpoints: {states}")

        def probe():
            there = self.list_endpoints()
            return there == states, f"{there}, {states}"

        self.wait_for("Stripe has other endpoints than the outputs", probe)
        return states

    def send(self, provider, event_type, *sets):
        """Sends a signed event and returns its id."""
        words = [word for pair in sets for word in ("--set", pair)]
        sent = self.billhook("send", provider, "--type", event_type, *words, *CONFIRMED, "--output", "json")
        return json.loads(sent)["event_id"]

    def wait_for_outcome(self, provider, event_id, outcome):
        table = self.table(f"{provider}EventsTable")

        def probe():
            row = table.get_item(Key={"event_id": event_id}, ConsistentRead=True).get("Item", {})
            seen = row.get("processing_outcome")
            return seen == outcome, f"{seen} {row.get('processing_error', '')}"

        self.wait_for(f"{event_id} is not {outcome}", probe)

    def put_statement(self, name):
        self.table("StatementsTable").put_item(Item={
            "statement_id": f"st_{name}", "tenant_id": "ten_smoke", "lob_letter_id": f"ltr_{name}",
            "amount_due": 4200, "currency": "usd",
        })

    def put_order(self, order):
        self.table("OrdersTable").put_item(
            Item={"id": order, "userId": "user_smoke", "status": "pending", "amountTotal": 4200, "currency": "usd"}
        )

    def check_row(self, output, key, column, value):
        """That a column of a row has a value, which it may get a moment after its event is processed."""
        table = self.table(output)

        def probe():
            row = table.get_item(Key=key, ConsistentRead=True).get("Item", {})
            return row.get(column) == value, row

        self.wait_for(f"{key} has not {column}={value}", probe)

    def destroy(self):
        """Deletes the stack and what it keeps, however much of it there is."""
        began = time.monotonic()
        self.make("destroy", self.parameters, "YES=1", limit_s=DELETION_MAX_S)
        self.delete_packages()
        self.is_there = False
        self.deletion_s = time.monotonic() - began
        if self.stop_at is not None:
            self.stop_at = self.started + self.limit_s - 1.2 * self.deletion_s
        return self.check_nothing_left()

    def delete_packages(self):
        """SAM's packages, which neither `sam deploy` nor `make destroy` deletes."""
        managed = describe("aws-sam-cli-managed-default") or {}
        for output in managed.get("Outputs", []):
            if output["OutputKey"] == "SourceBucket":
                boto3.resource("s3").Bucket(output["OutputValue"]).object_versions.filter(Prefix=f"{self.app}/").delete()

    def list_left(self):
        endpoints = self.list_endpoints() if self.stripe_key and "WebhookUrlStripe" in self.outputs else []
        return list_resources(self.app) + [f"endpoint {name} at Stripe" for name in sorted(endpoints)]

    def check_nothing_left(self):
        """Whatever the time is; what AWS still lists for a moment is gone at the end."""
        end = time.monotonic() + LISTED_MAX_S
        while left := [line for line in self.list_left() if KEPT_ROLE not in line]:
            if time.monotonic() > end:
                raise StepFailed(f"left behind: {', '.join(left)}")
            time.sleep(POLL_S)
        role = ", except the account's role" if self.list_left() else ""
        return f"nothing is left that has {self.app} in its name{role}"

    # ---- the steps, in their order

    def step_build(self):
        self.aws.build(self)

    def step_deploy(self):
        self.start_clock()
        self.deployment_s = self.deploy()

    def step_doctor_before_keys(self):
        return self.check_findings([*WITHOUT_LOB, *WITHOUT_STRIPE])

    def step_put_lob_secret(self):
        self.put_lob_secret()

    def step_put_stripe_key(self):
        self.need_stripe()
        self.put_stripe_key()

    def step_rotate(self):
        self.need_stripe()
        self.billhook("secrets", "rotate", "stripe", *CONFIRMED)
        self.read_outputs()
        return f"made {', '.join(sorted(self.check_endpoints()))}"

    def step_doctor(self):
        return self.check_findings([] if self.stripe_key else WITHOUT_STRIPE)

    def step_rotate_again(self):
        self.need_stripe()
        before = self.check_endpoints()
        self.billhook("secrets", "rotate", "stripe", *CONFIRMED)
        self.read_outputs()
        after = self.check_endpoints()
        if before & after:
            raise StepFailed(f"the same endpoints as before: {before & after}")
        return f"{', '.join(sorted(before))} replaced by {', '.join(sorted(after))}"

    def step_deliveries(self):
        self.put_statement(self.app)
        mailed = self.send("lob", "letter.mailed", f"reference_id=ltr_{self.app}")
        self.wait_for_outcome("Lob", mailed, "processed")
        self.check_row("StatementsTable", {"statement_id": f"st_{self.app}"}, "mail_status", "mailed")
        # A signature of another secret; 4 is the exit code of what is refused.
        send = ("send", "lob", "--type", "letter.mailed", "--secret-stdin", *CONFIRMED, "--output", "json")
        forged = self.billhook(*send, stdin="forged\n", codes=(4,))
        if json.loads(forged)["status"] != 400:
            raise StepFailed(f"a forged delivery: {forged}")
        return "a letter is processed, a forged one refused"

    def step_order(self):
        self.need_stripe()
        order, intent = f"ord_{self.app}", f"pi_{self.app}"
        self.put_order(order)
        paid = self.send(
            "stripe", "payment_intent.succeeded", f"data.object.id={intent}", f"data.object.latest_charge=ch_{self.app}",
            f"data.object.metadata.order_id={order}",
        )
        self.wait_for_outcome("Stripe", paid, "processed")
        self.check_row("OrdersTable", {"id": order}, "status", "completed")
        return f"{paid} completes its order"

    def step_dead_letters(self):
        """A letter's event is parked for want of its statement; its message is in the dead-letter queue beside nonsense."""
        letter = f"{self.app}dlq"
        event_id = self.send("lob", "letter.delivered", f"reference_id=ltr_{letter}")
        self.wait_for_outcome("Lob", event_id, "parked")
        self.put_statement(letter)
        sqs, queue = boto3.client("sqs"), self.outputs["LobEventsDlqUrl"]
        for group, body in (("pointer", json.dumps({"source": "lob", "event_id": event_id})), ("nonsense", "nonsense")):
            sqs.send_message(QueueUrl=queue, MessageBody=body, MessageGroupId=group, MessageDeduplicationId=secrets.token_hex(8))

        def list_states():
            rows = json.loads(self.billhook("dlq", "list", "--queue", "lob", "--output", "json"))
            return sorted(row["message"] for row in rows)

        act = ("--queue", "lob", *CONFIRMED)
        self.wait_for("the dead-letter queue has", lambda: ((states := list_states()) == ["open", "unreadable"], states))
        self.billhook("dlq", "redrive", *act)
        self.wait_for_outcome("Lob", event_id, "processed")
        self.check_row("StatementsTable", {"statement_id": f"st_{letter}"}, "mail_status", "delivered")
        self.wait_for("the dead-letter queue has", lambda: ((states := list_states()) == ["unreadable"], states))
        self.billhook("dlq", "purge", *act)
        self.wait_for("the dead-letter queue has", lambda: (not (states := list_states()), states))
        return "one message redriven and processed, one purged"

    def step_deploy_unchanged(self):
        before = self.read_outputs()
        self.deploy()
        if before.get("LastUpdatedTime") != describe(self.app).get("LastUpdatedTime"):
            raise StepFailed("CloudFormation updated the stack, although nothing had changed")
        return "no change"

    def step_deploy_changed(self):
        before = self.outputs
        self.parameters["LogRetentionDays"] = "3"
        self.deploy()
        groups = boto3.client("logs").describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{self.app}-")["logGroups"]
        days = {group.get("retentionInDays") for group in groups}
        if days != {3} or before != self.outputs:
            raise StepFailed(f"the log groups keep their lines {days} days, or the outputs differ")
        return f"LogRetentionDays=3 for {len(groups)} log groups, outputs as before"

    def step_delete(self):
        return self.destroy()

    def step_deploy_again(self):
        self.need_time(self.deployment_s + self.aws.queue_name_s)
        time.sleep(self.aws.queue_name_s)
        self.deploy()
        self.put_lob_secret()
        if self.stripe_key:
            self.put_stripe_key()
        self.put_order(f"ord_{self.app}_kept")
        return self.outputs["ApiId"]

    def step_delete_stack_only(self):
        self.need_stack()
        self.need_time(self.deletion_s + self.deployment_s + self.aws.queue_name_s)
        self.run(SAM, "delete", "--stack-name", self.app, "--region", self.region, "--no-prompts")
        own = f"{self.app}/{self.parameters['Env']}"
        kept = {f"table {name}" for name in self.kept_tables()} | {f"secret {own}/{name}" for name in KEPT_SECRETS}

        def probe():
            left = {line for line in self.list_left() if KEPT_ROLE not in line}
            return left == kept, f"more: {sorted(left - kept)}, missing: {sorted(kept - left)}"

        self.wait_for("other things are left than tables and secrets", probe, LISTED_MAX_S)
        self.is_to_import = True
        return f"{len(self.kept_tables())} tables and {len(KEPT_SECRETS)} secrets are left"

    def kept_tables(self):
        return [value for name, value in self.outputs.items() if name.endswith("Table")]

    def step_import(self):
        if not self.is_to_import:
            raise StepSkipped("the stack was not deleted alone")
        told = self.make("import", self.parameters)
        self.parameters |= dict(re.findall(r"(Existing\w+SecretArn)=([^\s']+)", told))
        return "the stack has its tables again"

    def step_deploy_imported(self):
        if not self.is_to_import:
            raise StepSkipped("the stack was not deleted alone")
        time.sleep(self.aws.queue_name_s)
        self.deploy()
        self.check_row("OrdersTable", {"id": f"ord_{self.app}_kept"}, "amountTotal", 4200)
        if self.stripe_key:
            self.check_endpoints()
        return "with the rows and the keys of before; " + self.check_findings([] if self.stripe_key else WITHOUT_STRIPE)

    def step_delete_again(self):
        self.need_stack()
        return self.destroy()

    # Each step, whether nothing can follow if it fails, and its name.
    STEPS = [
        (step_build, True, "build"),
        (step_deploy, True, "deploy"),
        (step_doctor_before_keys, False, "doctor before the keys"),
        (step_put_lob_secret, True, "put Lob's secret"),
        (step_put_stripe_key, True, "put Stripe's key"),
        (step_rotate, True, "rotate: make the endpoints"),
        (step_doctor, False, "doctor"),
        (step_rotate_again, False, "rotate: replace the endpoints"),
        (step_deliveries, False, "deliveries"),
        (step_order, False, "a payment completes an order"),
        (step_dead_letters, False, "dead-letter messages"),
        (step_deploy_unchanged, False, "deploy without a change"),
        (step_deploy_changed, False, "deploy with a change"),
        (step_delete, True, "delete, and nothing is left"),
        (step_deploy_again, True, "deploy again"),
        (step_delete_stack_only, True, "delete only the stack"),
        (step_import, True, "import the tables"),
        (step_deploy_imported, False, "deploy the rest"),
        (step_delete_again, True, "delete again, and nothing is left"),
    ]

    # ---- the run

    def do(self, step, name):
        """Does a step, and returns whether it failed. An interruption passes through."""
        self.say(f"{name} …")
        began = time.monotonic()
        result, detail = "interrupted", ""
        try:
            detail = step(self) or ""
            result = "ok"
        except StepSkipped as skipped:
            result, detail = "skipped", str(skipped)
        except TimeIsUp as late:
            result, detail = "out of time", str(late)
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the stack must be deleted
            result, detail = "failed", str(error) if isinstance(error, StepFailed) else repr(error)
        finally:
            self.results.append((name, time.monotonic() - began, result, self.mask(detail)))
            self.say(f"  {result}{f': {detail}' if detail else ''}")
        return result == "failed"

    def say(self, text):
        try:
            print(self.mask(f"[{self.elapsed_s():>4.0f} s] {text}"), flush=True)
        except OSError:  # the terminal was closed: the stack must be deleted all the same
            pass

    def elapsed_s(self):
        return time.monotonic() - self.started if self.started is not None else 0

    def run_steps(self):
        for step, ends_run, name in self.STEPS:
            if self.do(step, name) and ends_run:
                return

    def clean_up(self):
        """Deletes what is there after a failure or an interruption."""
        end = time.monotonic() + DELETION_MAX_S
        # CloudFormation deletes a stack while it is being created. Whether it does so during an update, nobody has tried.
        while (there := describe(self.app)) is not None and time.monotonic() < end:
            status = there["StackStatus"]
            if not status.endswith("_IN_PROGRESS") or status in ("CREATE_IN_PROGRESS", "REVIEW_IN_PROGRESS"):
                break
            time.sleep(POLL_S)
        return self.destroy()

    def run_all(self):
        """Returns how it ended: passed, failed, out of time or interrupted."""
        ended = "passed"
        try:
            self.run_steps()
        except TimeIsUp:
            ended = "out of time"
        except KeyboardInterrupt:
            ended = "interrupted"
        try:
            if self.is_there:
                self.do(Smoke.clean_up, "clean up")
        except (KeyboardInterrupt, TimeIsUp):
            ended = "interrupted"
        try:
            self.left = self.list_left()
        except Exception as error:  # noqa: BLE001
            self.left = [f"(unknown: {error!r})"]
        if ended == "passed" and any(result == "failed" for _, _, result, _ in self.results):
            ended = "failed"
        return ended

    # ---- the report

    def estimate_cost(self):
        hours = math.ceil(self.elapsed_s() / 3600) or 1
        resources = yaml_parse((ROOT / "template.yaml").read_text())["Resources"]
        rules = len(resources["WebAcl"]["Properties"]["Rules"])
        alarms = sum(resource["Type"] == "AWS::CloudWatch::Alarm" for resource in resources.values())
        firewall = (FIREWALL_MONTH + FIREWALL_RULE_MONTH * rules) * hours / HOURS_OF_MONTH
        firewall = firewall if self.parameters["Waf"] == "true" else 0
        stored = 7 * SECRET_MONTH * hours / HOURS_OF_MONTH
        return (
            "an estimate and not a bill, by the list prices of docs/cost.md, if AWS prorates them by the hour "
            f"({hours} h): firewall with at most {rules} rules ${firewall:.3f}, seven secrets ${stored:.3f}; each delivery is "
            f"less than a hundredth of a cent. Not counted, because docs/cost.md has no price for them: {alarms} alarms, the "
            "custom metrics, point-in-time recovery, the packages in S3."
        )

    def write_report(self, ended):
        version = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
        parameters = " ".join(f"{name}={value}" for name, value in self.parameters.items())
        lines = [
            f"# Smoke test on {self.aws.name}: {ended}", "", "| | |", "|---|---|",
            f"| began | {self.began_at:%Y-%m-%d %H:%M} UTC |",
            f"| version | {version.stdout.strip() or 'unknown: no Git'} |",
            f"| region, account | {self.region}, {self.account} |",
            f"| tools | {self.tools}; boto3 {boto3.__version__} |",
            f"| parameters | `{parameters}` |",
            f"| Stripe | {'with a test key' if self.stripe_key else 'without a key'} |",
            f"| time | {self.elapsed_s():.0f} s of at most {self.limit_s:.0f} s |", "",
            "| step | seconds | result |", "|---|---:|---|",
        ]
        for name, seconds, result, detail in self.results:
            first = detail.splitlines()[0].replace("|", "\\|") if detail else ""
            lines.append(f"| {name} | {seconds:.1f} | {result}{f': {first}' if first else ''} |")
        for name, _, result, detail in self.results:
            if result not in ("ok", "skipped") and "\n" in detail:
                lines += ["", f"The step \"{name}\":", "", "```", detail, "```"]
        shown = ["WebhookUrlStripe", "WebhookUrlLob", "ApiId", "StripeWebhookEndpointState", "StripePlatformWebhookEndpointState"]
        lines += ["", "Outputs of the last deployment:", ""] if self.outputs else []
        lines += [f"- `{name}`: {self.outputs[name]}" for name in shown if name in self.outputs]
        lines += ["", f"Cost: {self.estimate_cost()}", ""]
        by_mistake = [line for line in self.left if KEPT_ROLE not in line]
        for line in self.left:
            why = "" if line in by_mistake else ", which belongs to the account and stays on purpose"
            lines.append(f"Left behind: {line}{why}")
        if by_mistake:
            # What tells names, if there is no stack any more.
            named = " ".join(f"{name}={self.parameters[name]}" for name in ("AppName", "Env", "LiveMode", "OrdersTableName"))
            lines += ["", "Delete it with:", "", "```", f"AWS_REGION={self.region} make destroy ENV={self.app} PARAMS='{named}'"]
            lines += [f"stripe webhook_endpoints delete {line.split()[1]}" for line in by_mistake if line.startswith("endpoint")]
            lines.append("```")
        if not self.left:
            lines.append("Nothing is left behind.")
        text = self.mask("\n".join(lines)) + "\n"
        REPORT.write_text(text)
        print(f"\n{text}\nWritten to {REPORT.relative_to(ROOT)}; what the commands printed is in {LOG.relative_to(ROOT)}")


def read_stripe_key():
    key = os.environ.get("STRIPE_KEY", "")
    if not key and sys.stdin.isatty():
        key = getpass.getpass("Stripe test key, sk_test_… or rk_test_… (not shown; empty skips what needs Stripe): ")
    key = key.strip()
    if key and not re.fullmatch(r"[sr]k_test_\w+", key):
        sys.exit("smoke_aws.py: the Stripe key must begin with sk_test_ or rk_test_; a live key is refused")
    return key


def main():
    # A shell that runs this in the background has had SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n")[0])
    parser.add_argument("--tool", required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--staged")
    parser.add_argument("parameters", nargs="*")
    options = parser.parse_args()
    if not boto3.session.Session().region_name:
        sys.exit("smoke_aws.py: no AWS region is set: set AWS_REGION")
    stripe_key = read_stripe_key()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    smoke = Smoke(options, stripe_key)
    where = f"stack {smoke.app} in {smoke.region}, account {smoke.account}"
    print(smoke.mask(f"{where}; at most {options.minutes:g} minutes; Ctrl-C deletes it at once"))
    ended = smoke.run_all()
    smoke.write_report(ended)
    sys.exit({"passed": 0, "interrupted": 130}.get(ended, 1))


if __name__ == "__main__":
    try:
        main()
    except (BotoCoreError, ClientError, OSError, StepFailed) as error:
        sys.exit(f"smoke_aws.py: {error}")
