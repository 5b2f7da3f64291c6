//! Connects ingress to AWS: reads configuration, opens clients, secrets and connections during init (cold start), then
//! serves requests. No decisions; `lib` handles requests.

use std::process::ExitCode;

use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::IngressConfig;
use billhook_adapters::dynamodb::events::{self, DynamoInbox};
use billhook_adapters::lambda::{run_function, serve_events};
use billhook_adapters::secrets::{SecretsManager, SigningKeyCache};
use billhook_adapters::sqs::{EventQueues, FifoQueue};
use billhook_core::endpoint::secret::SecretKind;
use billhook_core::intake::ports::ReadSigningKeys as _;
use lambda_runtime::LambdaEvent;
use webhook_ingress::WebhookIngress;
use webhook_ingress::proxy::ProxyRequest;

fn main() -> ExitCode {
    run_function(
        "webhook-ingress",
        IngressConfig::from_env,
        async |config, aws| {
            let reader = |wanted, sources| {
                let secrets = SecretsManager::new(&aws);
                SigningKeyCache::new(
                    wanted,
                    sources,
                    config.secrets_ttl,
                    config.environment.live,
                    secrets,
                    SystemClock,
                )
            };
            let queue = |url| FifoQueue::new(aws.sqs().clone(), url);
            let ingress = WebhookIngress {
                stripe_keys: reader(SecretKind::StripeSigning, config.stripe_signing_secrets),
                lob_keys: reader(SecretKind::LobSigning, config.lob_signing_secrets),
                inbox: DynamoInbox {
                    client: aws.dynamodb().clone(),
                    stripe_table: config.stripe_events_table,
                    lob_table: config.lob_events_table,
                },
                queue: EventQueues {
                    stripe: queue(config.stripe_events_queue_url),
                    lob: queue(config.lob_events_queue_url),
                },
                clock: SystemClock,
                tolerance: config.signature_tolerance,
            };
            // During init Lambda does not throttle the CPU, so read and open now what the first event needs
            // (docs/adr/0001: 18 ms become 9 ms). A failure here does not stop the start; the first event tries again.
            events::warm_compressor();
            tokio::join!(
                aws.warm(1, 1),
                ingress.stripe_keys.signing_keys(),
                ingress.lob_keys.signing_keys()
            );
            serve_events(async |event: LambdaEvent<ProxyRequest>| {
                // Boxed, because the compiler cannot lay out futures nested this deep.
                Ok::<_, std::convert::Infallible>(Box::pin(ingress.handle(event.payload)).await)
            })
            .await
        },
    )
}
