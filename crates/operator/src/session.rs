//! A session with a deployed stack: AWS clients, the stack's outputs, and the identity of the operator for the audit
//! trail.

use std::cell::RefCell;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};
use aws_config::{BehaviorVersion, Region};
use aws_smithy_http_client::tls::Provider as Tls;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use billhook_adapters::aws::AwsClients;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::{SecretLocation, SecretSource};
use billhook_adapters::dynamodb::attributes::Item;
use billhook_adapters::dynamodb::events::{read_seal, read_stored_event};
use billhook_adapters::dynamodb::index::FallbackScan;
use billhook_adapters::dynamodb::ledger::{DynamoLedger, LedgerSeals, StateSealCheck, TableNames};
use billhook_adapters::secrets::{SecretsManager, load_document};
use billhook_adapters::sqs::{EventQueues, FifoQueue};
use billhook_core::endpoint::secret::{EndpointSecret, SecretHolder, SecretKind};
use billhook_core::entity::ENTITY_SCHEMAS;
use billhook_core::ids::{PerProvider, ProviderId};
use billhook_core::ports::Clock as _;
use billhook_core::provider::signature::{KeyScope, SigningKey};
use billhook_core::worker::ports::StoredEvent;
use secrecy::ExposeSecret as _;

use crate::audit::{AuditContext, AuditLog, ChangeAuthor, PlannedChange};
use crate::aws_request::SignedAwsClient;
use crate::events_table::EventsTable;
use crate::output::print_notice;
use crate::replay_job::ReplayJobsTable;
use crate::stack::DeployedStack;
use crate::stack_options::StackOptions;

#[derive(Debug)]
pub(crate) struct StackSession {
    pub(crate) stack: DeployedStack,
    pub(crate) dynamodb: aws_sdk_dynamodb::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) secrets_manager: aws_sdk_secretsmanager::Client,
    pub(crate) secrets: SecretsManager,
    pub(crate) aws: SignedAwsClient,
    seals: OnceLock<LedgerSeals>,
    /// What the command has begun to change.
    started_changes: RefCell<Vec<AuditContext>>,
    sts: aws_sdk_sts::Client,
}

impl StackSession {
    pub(crate) async fn open(options: &StackOptions) -> Result<Self> {
        let Some(name) = &options.stack else {
            bail!("the stack is not set: pass --stack, or set BILLHOOK_STACK");
        };
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Tls::Rustls(CryptoMode::Ring))
            .build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(http);
        if let Some(profile) = &options.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = &options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &options.endpoint_url {
            loader = loader.endpoint_url(endpoint);
        }
        let config = loader.load().await;
        if config.region().is_none() {
            bail!(
                "the AWS region is not set: pass --region, or set AWS_REGION or the region of the profile"
            );
        }
        let clients = AwsClients::from_sdk_config(&config);
        let client = SignedAwsClient::new(config.clone(), options.endpoint_url.clone())?;
        Ok(Self {
            stack: DeployedStack::describe(&client, name).await?,
            dynamodb: clients.dynamodb().clone(),
            sqs: clients.sqs().clone(),
            secrets_manager: clients.secrets_manager().clone(),
            secrets: SecretsManager::new(&clients),
            sts: aws_sdk_sts::Client::new(&config),
            aws: client,
            seals: OnceLock::new(),
            started_changes: RefCell::default(),
        })
    }

    /// The ARN of the caller. AWS vouches for it; a user name of this machine could be anything.
    async fn identify_actor(&self) -> Result<String> {
        let identity = self.sts.get_caller_identity().send().await;
        let identity = identity.context(
            "cannot find out who you are (sts:GetCallerIdentity); the audit trail needs it",
        )?;
        identity
            .arn
            .context("AWS returned no ARN for these credentials")
    }

    pub(crate) fn audit_log(&self) -> Result<AuditLog<'_>> {
        let group = self.stack.output("AuditLogGroup")?;
        Ok(AuditLog {
            aws: &self.aws,
            group,
        })
    }

    /// Writes to the audit log who begins to change what, and why.
    pub(crate) async fn start_audit(
        &self,
        reason: String,
        planned: PlannedChange<'_>,
    ) -> Result<AuditContext> {
        let log = self.audit_log()?;
        let actor = self.identify_actor().await?;
        let author = ChangeAuthor { actor, reason };
        let audit = log.start_change(author, planned).await?;
        self.started_changes.borrow_mut().push(audit.clone());
        Ok(audit)
    }

    /// Writes to the audit log how the command ended, if it began to change something. What is changed stays changed if that
    /// fails: the first line is there.
    pub(crate) async fn end_audit(&self, result: &Result<()>) {
        let started = self.started_changes.take();
        for audit in started {
            let ended = match self.audit_log() {
                Ok(log) => log.end_change(&audit, result).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                print_notice(&format!("{error:#}"));
            }
        }
    }

    /// All secrets that a genuine delivery may be signed with, as ingress knows them: the current ones first, then replaced
    /// ones that are still valid after a rotation.
    pub(crate) async fn read_signing_keys(&self, provider: ProviderId) -> Result<Vec<SigningKey>> {
        let wanted = SecretKind::signing_of(provider);
        let now = SystemClock.now();
        let (mut current, mut replaced) = (Vec::new(), Vec::new());
        for (output, scope) in self.signing_secrets(provider) {
            let arn = self.stack.output(&output)?;
            let document = load_document(&self.secrets, arn, wanted, now).await?;
            let key = |of: EndpointSecret| {
                SigningKey::from_value(&output, of.secret.expose_secret(), scope)
            };
            current.extend(document.current.and_then(key));
            let valid = document
                .previous
                .into_iter()
                .filter(|previous| previous.valid_until > now);
            replaced.extend(valid.filter_map(|previous| key(previous.of)));
        }
        if current.is_empty() {
            bail!(
                "the stack has no {provider} signing secret yet: store it, or pass one with --secret-stdin"
            );
        }
        current.extend(replaced);
        Ok(current)
    }

    /// The outputs with the ARNs of the secrets that ingress reads. The parameter `StripeEndpoints` may ask for only one endpoint,
    /// and then ingress does not read the other's secret.
    pub(crate) fn signing_secrets(&self, provider: ProviderId) -> Vec<(String, KeyScope)> {
        match SecretKind::signing_of(provider).holder() {
            SecretHolder::InboundSecret | SecretHolder::AppSecret => {
                vec![("InboundSecretArn".to_owned(), KeyScope::AllEvents)]
            }
            SecretHolder::EndpointSecrets => [
                ("PlatformWebhook", KeyScope::Platform),
                ("Webhook", KeyScope::ConnectedAccounts),
            ]
            .map(|(name, scope)| (format!("{}{name}", provider.title()), scope))
            .into_iter()
            .filter(|(name, _)| self.stack.output(&format!("{name}EndpointState")).is_ok())
            .map(|(name, scope)| (format!("{name}SecretArn"), scope))
            .collect(),
        }
    }

    pub(crate) fn events_table(&self, provider: ProviderId) -> Result<EventsTable> {
        let output = format!("{}EventsTable", provider.title());
        Ok(EventsTable {
            client: self.dynamodb.clone(),
            table: self.stack.output(&output)?.to_owned(),
            provider,
        })
    }

    pub(crate) fn replay_jobs(&self) -> Result<ReplayJobsTable> {
        Ok(ReplayJobsTable {
            client: self.dynamodb.clone(),
            table: self.stack.output("JobsTable")?.to_owned(),
        })
    }

    /// The ledger that the provider's worker uses.
    pub(crate) fn ledger(&self, provider: ProviderId) -> Result<DynamoLedger<SystemClock>> {
        let tables = TableNames {
            events: self.events_table(provider)?.table,
            entities: self.stack.output("EntitiesTable")?.to_owned(),
            application_tables: ENTITY_SCHEMAS
                .iter()
                .map(|schema| {
                    Ok((
                        schema.table,
                        self.stack.application_table(schema)?.to_owned(),
                    ))
                })
                .collect::<Result<_>>()?,
            rules: self.stack.row_rules()?,
        };
        Ok(DynamoLedger::new(
            self.dynamodb.clone(),
            tables,
            self.seals()?,
            SystemClock,
            // A command of an operator must not raise the functions' alarm.
            announce_fallback_scan,
        ))
    }

    /// The keys that check seals, read once. Who may not read the key of the states' seals sees states unchecked, and can
    /// write none.
    fn seals(&self) -> Result<LedgerSeals> {
        let source = |output: &str| {
            let location = SecretLocation::Arn(self.stack.output(output)?.to_owned());
            let variable = output.to_owned();
            anyhow::Ok(SecretSource { variable, location })
        };
        let (events, states) = (
            source("SealPublicSecretArn")?,
            source("StateSealSecretArn")?,
        );
        let check = StateSealCheck::IfReadable;
        let read = || LedgerSeals::new(&self.secrets, events, states, check);
        Ok(self.seals.get_or_init(read).clone())
    }

    /// Says so where nobody can check the seals of states: a check that was not made must not look like one that passed.
    pub(crate) async fn announce_unchecked_states(&self) -> Result<()> {
        if let Err(error) = self.seals()?.states.keys_for([]).await {
            print_notice(&format!("the seals of states are not checked: {error}"));
        }
        Ok(())
    }

    /// The event in a row, with its payload if its seal is genuine.
    pub(crate) async fn read_event(
        &self,
        provider: ProviderId,
        row: &Item,
    ) -> Result<Option<StoredEvent>> {
        let keys = self.seals()?.events.keys_for([read_seal(row)]).await?;
        Ok(read_stored_event(provider, row, &keys))
    }

    pub(crate) fn queues(&self) -> Result<EventQueues> {
        let queues = PerProvider::try_new(|provider| {
            let output = format!("{}EventsQueueUrl", provider.title());
            let url = self.stack.output(&output)?.to_owned();
            anyhow::Ok(FifoQueue::new(self.sqs.clone(), url))
        })?;
        Ok(EventQueues(queues))
    }
}

/// A scan takes long, and the operator should know why.
fn announce_fallback_scan(scan: &FallbackScan<'_>) {
    let (index, table) = (scan.index, scan.table);
    print_notice(&format!(
        "{index} of {table} is not ACTIVE, so the whole table is read: see `billhook doctor`"
    ));
}
