//! Connects ingress to AWS: reads configuration, opens clients, secrets and connections during init (cold start), then
//! serves requests. No decisions; `lib` handles requests.

use std::process::ExitCode;

use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::IngressConfig;
use billhook_adapters::dynamodb::events::{self, DynamoInbox};
use billhook_adapters::lambda::{run_function, serve_events};
use billhook_adapters::secrets::{EventSealerCache, SecretsManager, SigningKeyCache};
use billhook_adapters::sqs::{EventQueues, FifoQueue};
use billhook_core::endpoint::secret::SecretKind;
use billhook_core::ids::PerProvider;
use billhook_core::intake::ports::ReadSigningKeys as _;
use futures_util::future::join_all;
use lambda_runtime::LambdaEvent;
use webhook_ingress::WebhookIngress;
use webhook_ingress::account_limiter::AccountLimiter;
use webhook_ingress::proxy::ProxyRequest;

fn main() -> ExitCode {
    run_function(
        "webhook-ingress",
        IngressConfig::from_env,
        async |config, aws| {
            let sources = config.signing_secrets;
            let reader = |provider| {
                let secrets = SecretsManager::new(&aws);
                SigningKeyCache::new(
                    SecretKind::signing_of(provider),
                    sources.of(provider).clone(),
                    config.secrets_ttl,
                    config.environment.live,
                    secrets,
                    SystemClock,
                )
            };
            let ingress = WebhookIngress {
                keys: PerProvider::new(reader),
                inbox: DynamoInbox {
                    client: aws.dynamodb().clone(),
                    tables: config.events_tables,
                    sealer: EventSealerCache::new(
                        config.sealer,
                        SecretsManager::new(&aws),
                        SystemClock,
                    ),
                },
                queue: EventQueues(
                    config
                        .queue_urls
                        .map(|url| FifoQueue::new(aws.sqs().clone(), url)),
                ),
                clock: SystemClock,
                tolerance: config.signature_tolerance,
                counts_types: config.type_metrics,
                account_limiter: AccountLimiter::new(config.account_rate_limit),
            };
            // During init Lambda does not throttle the CPU, so read and open now what the first event needs
            // (docs/adr/0001: 18 ms become 9 ms). A failure here does not stop the start; the first event tries again.
            events::warm_compressor();
            let keys = ingress.keys.iter().map(|(_, keys)| keys.signing_keys());
            let sealer = ingress.inbox.sealer.sealer();
            tokio::join!(aws.warm(1, 1), join_all(keys), sealer).2.ok();
            serve_events(async |event: LambdaEvent<ProxyRequest>| {
                // Boxed, because the compiler cannot lay out futures nested this deep.
                Ok::<_, std::convert::Infallible>(Box::pin(ingress.handle(event.payload)).await)
            })
            .await
        },
    )
}
