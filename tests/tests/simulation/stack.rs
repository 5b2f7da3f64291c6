//! Simulated CloudFormation: creates, replaces, rolls back and deletes endpoints through the custom resource. Each
//! request is delivered until it is answered, and some twice.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use billhook_adapters::secrets::revoke_replaced;
use billhook_core::endpoint::secret::SecretKind;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use billhook_core::time::Timestamp;
use billhook_testkit::custom_resource::{
    LOGICAL_ID, RESPONSE_URL, STACK_ID, WEBHOOK_URL, policy, response_hosts,
};
use serde_json::{Value, json};
use webhook_secret::ports::ResourceDependencies;
use webhook_secret::{ANSWER_RESERVE, handle_request};

use crate::check::Found;
use crate::edges::{Edge, LOB_ARN, STRIPE_ARN};
use crate::functions::{Ended, Functions};
use crate::senders::{Call, lob_request, lob_secret, stripe_request};

/// As in `template.yaml`.
const FUNCTION_MAX: Duration = Duration::from_secs(110);
const SERVICE_TIMEOUT: Duration = Duration::from_secs(300);
/// Lambda repeats an asynchronous invocation that fails.
const TRIES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_mins(1),
    Duration::from_mins(2),
];

/// The stack, as far as it has the endpoint.
pub(crate) struct Stack {
    functions: Functions,
    requests: Rc<Cell<u32>>,
    token: u32,
    /// The physical id; none before the first deployment.
    id: Option<String>,
}

/// What the stack came to: the endpoint that it has, if any.
pub(crate) async fn deployed(functions: Functions, until: Timestamp) -> Stack {
    let mut stack = Stack {
        functions,
        requests: Rc::default(),
        token: 0,
        id: None,
    };
    let sim = stack.functions.sim.clone();
    while stack.functions.sim.now() < until {
        stack.deploy().await;
        sim.wait(Duration::from_secs(1), Duration::from_mins(8))
            .await;
    }
    // One that nothing disturbs: it also takes away what the others left.
    stack.deploy().await;
    stack
}

fn properties(token: u32) -> Value {
    json!({ "Url": WEBHOOK_URL, "SecretArn": STRIPE_ARN, "RotationToken": token.to_string() })
}

impl Stack {
    async fn deploy(&mut self) {
        let Some(old) = self.id.clone() else {
            match self.request("Create", "", 0, 0).await {
                Ok(id) => self.id = Some(id),
                // The stack is rolled back, and somebody deploys again.
                Err(id) => drop(self.request("Delete", &id, 0, 0).await),
            }
            return;
        };
        let (was, token) = (self.token, self.token + 1);
        let updated = self.request("Update", &old, was, token).await;
        let is_kept = !self.functions.sim.world().rng.chance(300);
        if let Ok(new) = &updated
            && is_kept
        {
            self.functions.sim.world().sometimes("rotation");
            (self.token, self.id) = (token, Some(new.clone()));
            return self.delete_unless(&old, new, token).await;
        }
        // This resource failed, or another of the stack did.
        self.functions.sim.world().sometimes("rollback");
        let at = updated.unwrap_or_else(|id| id);
        loop {
            if let Ok(id) = self.request("Update", &at, token, was).await {
                self.id = Some(id.clone());
                self.delete_unless(&at, &id, was).await;
                return self.delete_unless(&old, &id, was).await;
            }
            self.do_as_told();
        }
    }

    /// Where the rollback is refused, because an overtaken repeat left another endpoint in use, the operator deletes
    /// that one, as the reason says, and has the stack go on.
    fn do_as_told(&self) {
        let now = self.functions.sim.now();
        let mut world = self.functions.sim.world();
        let reason = world
            .stack_answers
            .last()
            .and_then(|answer| answer["Reason"].as_str());
        let Some((id, _)) = reason.and_then(|reason| reason.split_once(" is in use and")) else {
            return;
        };
        let id = id.to_owned();
        for endpoint in &mut world.stripe.endpoints {
            if endpoint.id == id {
                endpoint.deleted_at.get_or_insert(now);
            }
        }
    }

    async fn delete_unless(&mut self, id: &str, kept: &str, token: u32) {
        if id != kept {
            self.request("Delete", id, token, token).await.ok();
        }
    }

    /// The physical id that a request is answered with; `Err` for a failure.
    async fn request(
        &mut self,
        kind: &str,
        at: &str,
        old: u32,
        new: u32,
    ) -> Result<String, String> {
        let number = self.requests.get() + 1;
        self.requests.set(number);
        let request_id = format!("r{number}");
        let request = json!({
            "RequestType": kind, "RequestId": request_id, "ResponseURL": RESPONSE_URL, "StackId": STACK_ID,
            "LogicalResourceId": LOGICAL_ID, "PhysicalResourceId": at,
            "OldResourceProperties": properties(old), "ResourceProperties": properties(new),
        });
        let sim = self.functions.sim.clone();
        sim.world()
            .tell(|| format!("cloudformation {request_id} {kind} of {at:?} from {old} to {new}"));
        let began = sim.now();
        let delivery = Delivery {
            functions: self.functions.clone(),
            request,
            number,
            requests: self.requests.clone(),
        };
        let again = delivery.clone();
        tokio::task::spawn_local(delivery.invoke());
        if sim.world().rng.chance(150) {
            sim.world().sometimes("request delivered twice");
            let sim = sim.clone();
            tokio::task::spawn_local(async move {
                sim.wait(Duration::from_secs(1), Duration::from_mins(4))
                    .await;
                again.invoke().await;
            });
        }
        while sim.now() < began.after(SERVICE_TIMEOUT) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let answer = {
                let world = sim.world();
                let mut answers = world.stack_answers.iter();
                answers
                    .find(|answer| answer["RequestId"] == request_id)
                    .cloned()
            };
            if let Some(answer) = answer {
                let id = answer["PhysicalResourceId"].as_str().unwrap().to_owned();
                return if answer["Status"] == "SUCCESS" {
                    Ok(id)
                } else {
                    Err(id)
                };
            }
        }
        sim.world().sometimes("request unanswered");
        Err(at.to_owned())
    }

    /// What must hold at rest, and what must be refused a day later.
    pub(crate) async fn check(mut self, found: &mut Found) {
        self.at_rest(found);
        let functions = self.functions.clone();
        let port = functions.port("operator", ProviderId::Lob);
        let fresh = [("lob_webhook_secret", "lob_another".into())];
        revoke_replaced(
            &Edge(port),
            LOB_ARN,
            SecretKind::LobSigning,
            &fresh,
            functions.sim.now(),
        )
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_mins(15)).await;
        let now_s = functions.sim.now().unix_s();
        let request = lob_request("{}", &lob_secret(), now_s);
        self.refused("a revoked secret", request, found).await;

        tokio::time::sleep(Duration::from_hours(24)).await;
        let now_s = functions.sim.now().unix_s();
        let gone: Vec<String> = {
            let world = functions.sim.world();
            let all = world.stripe.endpoints.iter();
            let gone = all.filter(|endpoint| endpoint.deleted_at.is_some());
            gone.map(|endpoint| endpoint.secret.clone()).collect()
        };
        for secret in gone {
            let request = stripe_request("{}", &secret, now_s);
            self.refused("a superseded secret", request, found).await;
        }
        let is_deleted = functions.sim.world().rng.chance(300);
        if let Some(id) = self.id.take_if(|_| is_deleted) {
            self.request("Delete", &id, self.token, self.token)
                .await
                .ok();
            self.at_rest(found);
        }
    }

    async fn refused(&self, what: &'static str, request: Value, found: &mut Found) {
        let status = self
            .functions
            .send(Call::Forged(what, &[400]), request)
            .await;
        if status != Some(400) {
            found.add(16, format!("{what}: answered {status:?}"));
        }
    }

    fn at_rest(&self, found: &mut Found) {
        let world = self.functions.sim.world();
        let all = world.stripe.endpoints.iter();
        let live: Vec<&str> = all
            .filter(|endpoint| endpoint.deleted_at.is_none())
            .map(|endpoint| endpoint.id.as_str())
            .collect();
        let wanted: Vec<&str> = self.id.iter().map(String::as_str).collect();
        if live != wanted {
            found.add(
                20,
                format!("the endpoints are {live:?} and should be {wanted:?}"),
            );
        }
        let stored = world
            .secrets
            .get(STRIPE_ARN)
            .and_then(|versions| versions.last());
        let stored: Value = serde_json::from_str(stored.map_or("{}", |(text, _)| text)).unwrap();
        for id in wanted {
            let its = world
                .stripe
                .endpoints
                .iter()
                .find(|endpoint| endpoint.id == id);
            if stored["signing_secret"].as_str() != its.map(|endpoint| endpoint.secret.as_str()) {
                found.add(20, format!("the secret of {id} is not stored"));
            }
        }
        // A repeat that comes before the next request has the same outcome; a later one nobody hears.
        let mut heard: (u32, &str) = (0, "");
        for answer in world
            .stack_answers
            .iter()
            .filter(|it| it["Status"] == "SUCCESS")
        {
            let number = answer["RequestId"].as_str().unwrap()[1..].parse().unwrap();
            let id = answer["PhysicalResourceId"].as_str().unwrap();
            if number == heard.0 && id != heard.1 {
                found.add(
                    20,
                    format!("request r{number} was answered with {id} and {}", heard.1),
                );
            }
            if number > heard.0 {
                heard = (number, id);
            }
        }
    }
}

/// A request on its way to the function.
#[derive(Clone)]
struct Delivery {
    functions: Functions,
    request: Value,
    number: u32,
    /// The last that was made.
    requests: Rc<Cell<u32>>,
}

impl Delivery {
    /// What the function cannot tell from a rollback that is still to come, or from a first try, and what
    /// `docs/reliability.md` names as a limit.
    fn is_ambiguous(&self) -> bool {
        let world = self.functions.sim.world();
        let mut all = world.stripe.endpoints.iter();
        let named = all.find(|it| self.request["PhysicalResourceId"] == it.id);
        let is_live = named.is_some_and(|endpoint| endpoint.deleted_at.is_none());
        let may_be = match self.request["RequestType"].as_str() {
            Some("Create") => true,
            Some("Update") => is_live,
            _ => false,
        };
        may_be && self.requests.get() > self.number
    }

    async fn invoke(self) {
        for wait in TRIES {
            tokio::time::sleep(wait).await;
            if self.is_ambiguous() {
                return;
            }
            let functions = &self.functions;
            if self.requests.get() > self.number {
                functions.sim.world().sometimes("request overtaken");
            }
            let port = functions.port("webhook-secret", ProviderId::Stripe);
            let edge = Edge(port.clone());
            let deps = ResourceDependencies {
                stripe: edge.clone(),
                secrets: edge.clone(),
                jobs: edge.clone(),
                cloudformation: edge,
                time: functions.sim.clone(),
                policy: policy(STRIPE_ARN),
                response_hosts: response_hosts(),
                app_name: "billhook".to_owned(),
                env: "test".to_owned(),
            };
            let time_is_up = tokio::time::sleep(FUNCTION_MAX - ANSWER_RESERVE);
            let handling = handle_request(self.request.clone(), time_is_up, &deps);
            let ended = functions.run(&port, FUNCTION_MAX, handling).await;
            if matches!(ended, Ended::Returned(Ok(()))) {
                return;
            }
        }
    }
}
