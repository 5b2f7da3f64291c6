//! Wiring: configuration, clients, secrets and connections opened during init, then requests.

use std::process::ExitCode;

use billhook_adapters::clock::SystemClock;
use billhook_adapters::config::IngressConfig;
use billhook_adapters::dynamodb::inbox::{self, Inbox};
use billhook_adapters::lambda::{run, serve};
use billhook_adapters::secrets::{SecretsManager, SigningKeysReader};
use billhook_adapters::sqs::{Queue, Queues};
use billhook_core::ports::ReadSigningKeys as _;
use billhook_core::secret::Wanted;
use lambda_runtime::LambdaEvent;
use webhook_ingress::Ingress;
use webhook_ingress::proxy::Request;

fn main() -> ExitCode {
    run(
        "webhook-ingress",
        IngressConfig::from_env,
        async |config, aws| {
            let reader = |wanted, sources| {
                let secrets = SecretsManager::new(&aws);
                SigningKeysReader::new(
                    wanted,
                    sources,
                    config.secrets_ttl,
                    config.stage.live,
                    secrets,
                    SystemClock,
                )
            };
            let queue = |url| Queue::new(aws.sqs().clone(), url);
            let ingress = Ingress {
                stripe_keys: reader(Wanted::StripeSigning, config.stripe_signing_secrets),
                lob_keys: reader(Wanted::LobSigning, config.lob_signing_secrets),
                inbox: Inbox {
                    client: aws.dynamodb().clone(),
                    stripe_table: config.stripe_events_table,
                    lob_table: config.lob_events_table,
                },
                queue: Queues {
                    stripe: queue(config.stripe_events_queue_url),
                    lob: queue(config.lob_events_queue_url),
                },
                clock: SystemClock,
                tolerance: config.signature_tolerance,
            };
            // During init the CPU is not throttled: what the first event needs is read and opened now. What fails here is
            // tried again by that event.
            inbox::warm();
            tokio::join!(
                aws.warm(1, 1),
                ingress.stripe_keys.signing_keys(),
                ingress.lob_keys.signing_keys()
            );
            serve(async |event: LambdaEvent<Request>| {
                // Boxed, because the whole tree of calls below is too deep a type for the compiler.
                Ok::<_, std::convert::Infallible>(Box::pin(ingress.handle(event.payload)).await)
            })
            .await
        },
    )
}
