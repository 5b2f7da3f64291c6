//! The way to a deployed stack: who asks, and the clients.

use anyhow::{Context as _, Result, bail};
use aws_config::{BehaviorVersion, Region};
use aws_smithy_http_client::tls::Provider as Tls;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use billhook_adapters::aws::AwsClients;
use billhook_adapters::clock::SystemClock;
use billhook_adapters::dynamodb::ledger::{DynamoLedger, TableNames};
use billhook_adapters::secrets::{SecretsManager, load_document};
use billhook_adapters::sqs::{EventQueues, FifoQueue};
use billhook_core::endpoint::secret::SecretKind;
use billhook_core::ids::ProviderId;
use billhook_core::ports::Clock as _;
use secrecy::SecretString;

use crate::cli::Where;
use crate::signed::Caller;
use crate::stack::Stack;
use crate::store::Events;

/// A stack and the clients that reach it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) stack: Stack,
    pub(crate) dynamodb: aws_sdk_dynamodb::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) secrets_manager: aws_sdk_secretsmanager::Client,
    pub(crate) secrets: SecretsManager,
    pub(crate) caller: Caller,
    sts: aws_sdk_sts::Client,
}

impl Session {
    pub(crate) async fn open(place: &Where) -> Result<Self> {
        let Some(name) = &place.stack else {
            bail!("no stack is named: give --stack, or set BILLHOOK_STACK");
        };
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Tls::Rustls(CryptoMode::Ring))
            .build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(http);
        if let Some(profile) = &place.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = &place.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &place.endpoint_url {
            loader = loader.endpoint_url(endpoint);
        }
        let config = loader.load().await;
        if config.region().is_none() {
            bail!("no region is known: give --region, or set AWS_REGION or the profile's region");
        }
        let aws = AwsClients::over(&config);
        let caller = Caller::new(config.clone(), place.endpoint_url.clone())?;
        Ok(Self {
            stack: Stack::read(&caller, name).await?,
            dynamodb: aws.dynamodb().clone(),
            sqs: aws.sqs().clone(),
            secrets_manager: aws.secrets_manager().clone(),
            secrets: SecretsManager::new(&aws),
            sts: aws_sdk_sts::Client::new(&config),
            caller,
        })
    }

    /// Who acts, as AWS knows them: what an audit trail can rely on.
    pub(crate) async fn actor(&self) -> Result<String> {
        let identity = self.sts.get_caller_identity().send().await;
        let identity =
            identity.context("cannot tell who you are, and nothing is done without that")?;
        identity
            .arn
            .context("AWS gave no ARN for these credentials")
    }

    /// The secrets that sign a provider's deliveries, those in use now before those that were replaced.
    pub(crate) async fn signing_secrets(&self, provider: ProviderId) -> Result<Vec<SecretString>> {
        let (keys, wanted): (&[&str], _) = match provider {
            ProviderId::Stripe => (
                &["StripePlatformWebhookSecretArn", "StripeWebhookSecretArn"],
                SecretKind::StripeSigning,
            ),
            ProviderId::Lob => (&["AppSecretArn"], SecretKind::LobSigning),
        };
        let now = SystemClock.now();
        let (mut current, mut replaced) = (Vec::new(), Vec::new());
        for key in keys {
            let document =
                load_document(&self.secrets, self.stack.output(key)?, wanted, now).await?;
            current.extend(document.current.map(|of| of.secret));
            let valid = document
                .previous
                .into_iter()
                .filter(|previous| previous.valid_until > now);
            replaced.extend(valid.map(|previous| previous.of.secret));
        }
        if current.is_empty() {
            bail!("the stack has no {provider} signing secret yet: give one with --secret-stdin");
        }
        current.extend(replaced);
        Ok(current)
    }

    pub(crate) fn events(&self, provider: ProviderId) -> Result<Events> {
        let output = match provider {
            ProviderId::Stripe => "StripeEventsTable",
            ProviderId::Lob => "LobEventsTable",
        };
        Ok(Events {
            client: self.dynamodb.clone(),
            table: self.stack.output(output)?.to_owned(),
            provider,
        })
    }

    /// The rows as that provider's worker sees them.
    pub(crate) fn ledger(&self, provider: ProviderId) -> Result<DynamoLedger<SystemClock>> {
        let output = |key| self.stack.output(key).map(str::to_owned);
        let tables = TableNames {
            events: self.events(provider)?.table,
            orders: Some(output("OrdersTable")?),
            statements: output("StatementsTable")?,
            tenants: Some(output("TenantsTable")?),
            payments: Some(output("PaymentsTable")?),
        };
        Ok(DynamoLedger::new(
            self.dynamodb.clone(),
            tables,
            SystemClock,
        ))
    }

    pub(crate) fn queues(&self) -> Result<EventQueues> {
        let queue = |key| {
            let url = self.stack.output(key)?.to_owned();
            anyhow::Ok(FifoQueue::new(self.sqs.clone(), url))
        };
        Ok(EventQueues {
            stripe: queue("StripeEventsQueueUrl")?,
            lob: queue("LobEventsQueueUrl")?,
        })
    }
}
