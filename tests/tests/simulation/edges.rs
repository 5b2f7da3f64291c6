//! Simulated Secrets Manager, webhook endpoints at Stripe, and CloudFormation, for the ports that only `adapters` and
//! `webhook-secret` have.

use billhook_adapters::secrets::{
    FetchSecret, PutSecret, SealKeyRequest, SealSecrets, SecretVersion, SecretsError, StoredSecret,
    load_document, make_seal_keys,
};
use billhook_adapters::stripe::{
    CreatedEndpoint, NewEndpoint, SecretText, StripeError, StripeRefusal, UpdateResult,
    WebhookEndpoint,
};
use billhook_core::endpoint::applied::AppliedProperties;
use billhook_core::endpoint::secret::{SecretDocument, SecretKind};
use billhook_core::time::Timestamp;
use billhook_testkit::sim::{Call, Lost, Mutant, Port, SECRET_CANARY, Service, stripe as sim};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use webhook_secret::ports::{
    AdapterError, AppliedStore, ResetCursors, RespondToCloudFormation, StripeConnector,
    StripeEndpoints, WebhookSecretStore,
};
use webhook_secret::response_url::ResponseUrl;

/// The secret with the signing secret of Stripe's endpoint.
pub(crate) const STRIPE_ARN: &str = "arn:stripe";
/// The secret with Lob's.
pub(crate) const LOB_ARN: &str = "arn:lob";

#[derive(Clone)]
pub(crate) struct Edge(pub(crate) Port);

fn call(service: Service, name: &'static str, writes: bool) -> Call {
    Call {
        service,
        name,
        writes,
    }
}

impl FetchSecret for Edge {
    async fn fetch(
        &self,
        arn: &str,
        version: SecretVersion,
    ) -> Result<Option<StoredSecret>, SecretsError> {
        let own = arn.to_owned();
        let fetched = self
            .0
            .call(call(Service::Secrets, "fetch", false), arn, move |world| {
                if world.mutant == Some(Mutant::SecretUnreadable) && own == LOB_ARN {
                    return Some(("{ no json".to_owned(), world.now()));
                }
                let lags = world.mutant == Some(Mutant::SecretsLag);
                let versions = world.secrets.get(&own)?;
                let back = match version {
                    SecretVersion::Current if !lags => 1,
                    SecretVersion::Current | SecretVersion::Previous => 2,
                };
                let at = versions.len().checked_sub(back);
                let at = if lags { Some(at.unwrap_or(0)) } else { at };
                versions.get(at?).cloned()
            });
        match fetched.await {
            Ok(found) => Ok(found.map(|(text, created_at)| StoredSecret {
                text: text.into(),
                created_at: Some(created_at),
            })),
            Err(lost) => Err(SecretsError::Read {
                arn: arn.to_owned(),
                cause: lost.told(),
            }),
        }
    }
}

impl WebhookSecretStore for Edge {
    async fn read(&self, arn: &str, now: Timestamp) -> Result<SecretDocument, AdapterError> {
        Ok(load_document(self, arn, SecretKind::StripeSigning, now).await?)
    }

    async fn put(&self, arn: &str, value: &SecretString) -> Result<(), AdapterError> {
        Ok(PutSecret::put(self, arn, value).await?)
    }

    async fn make_seal_keys(&self, request: SealKeyRequest) -> Result<(), AdapterError> {
        let names = SealSecrets {
            private_arn: "arn:seal",
            public_arn: "arn:seal-public",
        };
        Ok(make_seal_keys(self, names, request).await?)
    }
}

impl PutSecret for Edge {
    async fn put(&self, arn: &str, value: &SecretString) -> Result<(), SecretsError> {
        let (own, value) = (arn.to_owned(), value.expose_secret().to_owned());
        let put = self
            .0
            .call(call(Service::Secrets, "put", true), arn, move |world| {
                let now = world.now();
                let versions = world.secrets.entry(own.clone()).or_default();
                versions.push((value.clone(), now));
            });
        put.await.map_err(|lost| SecretsError::Write {
            arn: arn.to_owned(),
            cause: lost.told(),
        })
    }
}

impl StripeConnector for Edge {
    type Endpoints = Self;

    async fn open(&self) -> Result<Option<Self>, AdapterError> {
        Ok(Some(self.clone()))
    }
}

fn refused(lost: Lost) -> StripeError {
    StripeError::Refused(Box::new(StripeRefusal {
        doing: lost.told(),
        status: if lost.is_throttled { 429 } else { 500 },
        code: "api_error".to_owned(),
        request_id: "req_1".to_owned(),
        message: String::new(),
        mutates: true,
    }))
}

impl StripeEndpoints for Edge {
    async fn create(
        &self,
        new: &NewEndpoint<'_>,
        idempotency_key: &str,
    ) -> Result<CreatedEndpoint, StripeError> {
        let key = idempotency_key.to_owned();
        let tags = new
            .metadata
            .iter()
            .map(|&(k, v)| (k.to_owned(), v.to_owned()));
        let wanted = sim::Endpoint {
            id: String::new(),
            url: new.url.to_owned(),
            types: new.enabled_events.to_vec(),
            metadata: tags.collect(),
            secret: String::new(),
            deleted_at: None,
        };
        let created = self.0.call(
            call(Service::Stripe, "create_endpoint", true),
            "",
            move |world| {
                let at = match world.stripe.saved.get(&key) {
                    Some(at) => *at,
                    None => {
                        let id = world.stripe.id("we");
                        let secret = format!("whsec_{SECRET_CANARY}_{id}");
                        world.tell(|| format!("stripe         makes {id}"));
                        world.stripe.endpoints.push(sim::Endpoint {
                            id,
                            secret,
                            ..wanted.clone()
                        });
                        let at = world.stripe.endpoints.len() - 1;
                        world.stripe.saved.insert(key.clone(), at);
                        at
                    }
                };
                let made = &world.stripe.endpoints[at];
                (made.id.clone(), made.secret.clone())
            },
        );
        let (id, secret) = created.await.map_err(refused)?;
        Ok(CreatedEndpoint {
            id,
            secret: Some(SecretText(secret.into())),
        })
    }

    async fn update(
        &self,
        id: &str,
        url: &str,
        enabled_events: &[String],
        _: &str,
    ) -> Result<UpdateResult, StripeError> {
        let (own, url, types) = (id.to_owned(), url.to_owned(), enabled_events.to_vec());
        let updated = self.0.call(
            call(Service::Stripe, "update_endpoint", true),
            id,
            move |world| {
                let mut all = world.stripe.endpoints.iter_mut();
                let found = all.find(|it| it.id == own && it.deleted_at.is_none());
                let Some(endpoint) = found else {
                    return UpdateResult::Gone;
                };
                endpoint.url.clone_from(&url);
                endpoint.types.clone_from(&types);
                UpdateResult::Done
            },
        );
        updated.await.map_err(refused)
    }

    async fn delete(&self, id: &str) -> Result<(), StripeError> {
        let own = id.to_owned();
        let deleted = self.0.call(
            call(Service::Stripe, "delete_endpoint", true),
            id,
            move |world| {
                let now = world.now();
                if world.mutant == Some(Mutant::EndpointStays) {
                    return;
                }
                let mut all = world.stripe.endpoints.iter_mut();
                if let Some(endpoint) = all.find(|it| it.id == own) {
                    endpoint.deleted_at.get_or_insert(now);
                }
            },
        );
        deleted.await.map_err(refused)
    }

    async fn list(&self) -> Result<Vec<WebhookEndpoint>, StripeError> {
        let listed = self.0.call(
            call(Service::Stripe, "list_endpoints", false),
            "",
            |world| {
                let all = world.stripe.endpoints.iter();
                let live = all.filter(|endpoint| endpoint.deleted_at.is_none());
                let shown = live.map(|endpoint| WebhookEndpoint {
                    id: endpoint.id.clone(),
                    url: endpoint.url.clone(),
                    enabled_events: endpoint.types.clone(),
                    metadata: endpoint.metadata.clone(),
                    status: "enabled".to_owned(),
                    api_version: None,
                });
                shown.collect()
            },
        );
        listed.await.map_err(refused)
    }
}

impl ResetCursors for Edge {
    async fn set_back(&self, to_s: i64) -> Result<(), AdapterError> {
        let call = call(Service::Tables, "set_back", true);
        let set = self
            .0
            .call(call, "", move |world| world.set_cursors_back(to_s));
        set.await.map_err(|lost| lost.told().into())
    }
}

impl AppliedStore for Edge {
    async fn load_applied(
        &self,
        logical_id: &str,
    ) -> Result<Option<AppliedProperties>, AdapterError> {
        let (call, id) = (
            call(Service::Tables, "load_applied", false),
            logical_id.to_owned(),
        );
        let load = self
            .0
            .call(call, "", move |world| world.applied.get(&id).cloned());
        load.await.map_err(|lost| lost.told().into())
    }

    async fn save_applied(
        &self,
        logical_id: &str,
        _: Option<&AppliedProperties>,
        applied: Option<&AppliedProperties>,
    ) -> Result<(), AdapterError> {
        let (call, id) = (
            call(Service::Tables, "save_applied", true),
            logical_id.to_owned(),
        );
        let applied = applied.cloned();
        let save = self.0.call(call, "", move |world| {
            match &applied {
                Some(applied) => world.applied.insert(id.clone(), applied.clone()),
                None => world.applied.remove(&id),
            };
        });
        save.await.map_err(|lost| lost.told().into())
    }
}

impl RespondToCloudFormation for Edge {
    async fn put(&self, _: &ResponseUrl, body: String) -> Result<(), AdapterError> {
        let answer: Value = serde_json::from_str(&body)?;
        let call = call(Service::Stack, "answer", true);
        let put = self.0.call(call, "", move |world| {
            world.tell(|| format!("cloudformation gets {answer}"));
            world.stack_answers.push(answer.clone());
        });
        put.await.map_err(|lost| lost.told().into())
    }
}
